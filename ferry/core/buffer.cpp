#include "ferry/buffer.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <limits>

#include "ferry/core/error.h"

namespace ferry {

namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::size_t kHugePageWorthwhile = 2 * kHugePage;

void* map(std::size_t bytes) {
  return mmap(
      nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

/// As map(), but at a multiple of the huge pages' size, where newer kernels would put it anyway:
/// else the first and last of them are lost to small pages.
void* map_for_huge_pages(std::size_t bytes) {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const std::size_t wanted = (bytes + page - 1) / page * page;
  void* const p = map(wanted + kHugePage);
  if (p == MAP_FAILED) return p;
  auto* const begin = static_cast<std::byte*>(p);
  const std::size_t before = (0 - reinterpret_cast<std::uintptr_t>(p)) % kHugePage;
  if (before > 0) munmap(begin, before);
  munmap(begin + before + wanted, kHugePage - before);
  return begin + before;
}

}  // namespace

void advise_huge_pages(void* data, std::size_t bytes) noexcept {
  if (bytes >= kHugePageWorthwhile) madvise(data, bytes, MADV_HUGEPAGE);
}

Buffer::Buffer(std::size_t bytes, Use use) {
  if (bytes == 0) return;
  const bool huge = use == Use::dense && bytes >= kHugePageWorthwhile &&
                    bytes <= std::numeric_limits<std::size_t>::max() - 2 * kHugePage;
  void* p = huge ? map_for_huge_pages(bytes) : map(bytes);
  if (p == MAP_FAILED) {
    fail<Error>(
        "cannot reserve {} bytes of memory: {}; use fewer ranks, a smaller --max-tokens "
        "or a smaller model",
        bytes,
        std::strerror(errno));
  }
  if (huge) advise_huge_pages(p, bytes);
  data_ = static_cast<std::byte*>(p);
  bytes_ = bytes;
}

Buffer::~Buffer() {
  if (data_) munmap(data_, bytes_);
}

}  // namespace ferry
