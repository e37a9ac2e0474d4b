// Memory that ranks and the process which starts them have in common.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <span>
#include <type_traits>

#include "ferry/core/error.h"

namespace ferry {

/// Zeroed elements that ranks and the launching process share, also when ranks are processes
/// themselves: memory that a fork keeps common. Untouched pages cost nothing. To be made before the
/// ranks.
template <class T>
class SharedArray {
  static_assert(std::is_trivially_destructible_v<T>);

 public:
  explicit SharedArray(std::size_t count)
      : bytes_(count * sizeof(T)),
        data_(mmap(nullptr,
                   bytes_,
                   PROT_READ | PROT_WRITE,
                   MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE,
                   -1,
                   0)) {
    if (data_ == MAP_FAILED) fail<Error>("cannot map {} bytes that ranks share", bytes_);
  }

  ~SharedArray() { munmap(data_, bytes_); }

  SharedArray(const SharedArray&) = delete;
  SharedArray& operator=(const SharedArray&) = delete;

  T& operator[](std::size_t i) const { return static_cast<T*>(data_)[i]; }

  std::span<std::byte> bytes() const { return {static_cast<std::byte*>(data_), bytes_}; }

 private:
  std::size_t bytes_;
  void* data_;
};

}  // namespace ferry
