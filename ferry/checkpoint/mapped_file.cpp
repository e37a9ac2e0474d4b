#include "ferry/checkpoint/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>

#include "ferry/core/error.h"

namespace ferry {

namespace {

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}

  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }

  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  int get() const { return fd_; }

 private:
  int fd_;
};

void advise(std::span<const std::byte> part, int advice, bool whole_pages_only) noexcept {
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  const std::size_t into_page = reinterpret_cast<std::uintptr_t>(part.data()) % page;
  const std::byte* begin = part.data() - into_page;
  std::size_t bytes = into_page + part.size();
  if (whole_pages_only) {  // neighbouring tensors share the pages at the borders
    const std::size_t skipped = into_page == 0 ? 0 : page;
    if (bytes < skipped + page) return;
    begin += skipped;
    bytes = (bytes - skipped) / page * page;
  }
  if (bytes > 0) ::madvise(const_cast<std::byte*>(begin), bytes, advice);
}

constexpr std::size_t kHugePage = std::size_t{2} << 20;

/// Reserves addresses first, so that the mapping begins where a huge page can: the system maps a
/// file's huge pages as such only where address and offset agree.
void* map_at_huge_page(std::size_t size, int fd) {
  void* const reserved = ::mmap(
      nullptr, size + kHugePage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserved == MAP_FAILED) return reserved;
  auto* const begin = static_cast<std::byte*>(reserved);
  const std::size_t before = (0 - reinterpret_cast<std::uintptr_t>(reserved)) % kHugePage;
  void* const data = ::mmap(begin + before, size, PROT_READ, MAP_PRIVATE | MAP_FIXED, fd, 0);
  if (data == MAP_FAILED) {
    const int why = errno;
    ::munmap(reserved, size + kHugePage);
    errno = why;
    return data;
  }
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  const std::size_t mapped = (size + page - 1) / page * page;
  if (before > 0) ::munmap(begin, before);
  ::munmap(begin + before + mapped, kHugePage - before);
  return data;
}

}  // namespace

MappedFile::MappedFile(const std::filesystem::path& path) {
  // O_NONBLOCK: a named pipe in the place of a checkpoint must not hang us.
  const Descriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (fd.get() < 0) {
    fail<ModelError>("{}: cannot be opened: {}", path.string(), std::strerror(errno));
  }

  struct stat status {};

  if (::fstat(fd.get(), &status) != 0 || !S_ISREG(status.st_mode)) {
    fail<ModelError>("{}: expected a file, found something else", path.string());
  }
  const auto size = static_cast<std::size_t>(status.st_size);
  if (size == 0) return;  // nothing can be mapped
  void* data = size < kHugePage ? ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd.get(), 0)
                                : map_at_huge_page(size, fd.get());
  if (data == MAP_FAILED) {
    fail<ModelError>("{}: cannot map {} bytes: {}", path.string(), size, std::strerror(errno));
  }
  bytes_ = {static_cast<const std::byte*>(data), size};
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

void advise_read_soon(std::span<const std::byte> part) noexcept {
  advise(part, MADV_WILLNEED, false);
}

void advise_read_done(std::span<const std::byte> part) noexcept {
  advise(part, MADV_DONTNEED, true);
}

}  // namespace ferry
