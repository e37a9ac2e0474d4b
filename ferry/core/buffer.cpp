#include "ferry/core/buffer.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>

#include "ferry/core/error.h"

namespace ferry {

namespace {

constexpr std::size_t kHugePageWorthwhile = std::size_t{32} << 20;

}  // namespace

void advise_huge_pages(void* data, std::size_t bytes) noexcept {
  if (bytes >= kHugePageWorthwhile) madvise(data, bytes, MADV_HUGEPAGE);
}

Buffer::Buffer(std::size_t bytes, Use use) {
  if (bytes == 0) return;
  void* p = mmap(
      nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) {
    fail<Error>(
        "cannot reserve {} bytes of memory: {}; use fewer ranks, a smaller --max-tokens "
        "or a smaller model",
        bytes,
        std::strerror(errno));
  }
  if (use == Use::dense) advise_huge_pages(p, bytes);
  data_ = static_cast<std::byte*>(p);
  bytes_ = bytes;
}

Buffer::~Buffer() {
  if (data_) munmap(data_, bytes_);
}

}  // namespace ferry
