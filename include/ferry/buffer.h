// Page-aligned memory that costs nothing until it is touched.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "ferry/export.h"

namespace ferry {

/// Zeroed anonymous memory, aligned to a page (a huge one where it asks for those), reserved but
/// not committed: pages that are never touched cost nothing. Movable, not copyable; frees in the
/// destructor. Throws Error when the address space or memory limit refuses.
class FERRY_API Buffer {
 public:
  /// How densely the memory will be used. Dense memory asks for huge pages from 4 MiB on (a row
  /// times a matrix of 25 MiB reads a quarter faster); in sparse memory each huge page would be
  /// cleared for the sake of a few rows (measured: half the time of a padded dispatch).
  enum class Use : std::uint8_t { dense, sparse };

  Buffer() = default;
  explicit Buffer(std::size_t bytes, Use use = Use::dense);
  ~Buffer();

  Buffer(Buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }

  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  std::byte* data() const { return data_; }

  std::size_t size() const { return bytes_; }

  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
};

/// Advises huge pages for [data, data + bytes) when large enough for them to pay.
FERRY_API void advise_huge_pages(void* data, std::size_t bytes) noexcept;

}  // namespace ferry
