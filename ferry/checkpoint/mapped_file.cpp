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
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd.get(), 0);
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
