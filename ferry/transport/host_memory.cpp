#include "ferry/transport/host_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <utility>

#include "ferry/core/error.h"

namespace ferry {

namespace {

std::string link_text(const char* path) {
  std::array<char, 64> text{};
  const ssize_t length = readlink(path, text.data(), text.size());
  return {text.data(), length > 0 ? static_cast<std::size_t>(length) : 0};
}

}  // namespace

std::string this_host() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string id;
  std::getline(file, id);
  // What /proc calls a process there must be the same process here.
  return id + " " + link_text("/proc/self/ns/pid") + " " + link_text("/proc/self/ns/net");
}

HostMemory::HostMemory(std::size_t bytes) : file_(memfd_create("ferry", MFD_CLOEXEC)) {
  if (!file_.valid() || ftruncate(file_.get(), static_cast<off_t>(bytes)) != 0) {
    fail<Error>("cannot reserve {} bytes of shared memory: {}; see ulimit -f and ulimit -n",
                bytes,
                std::strerror(errno));
  }
  map(bytes);
}

HostMemory::HostMemory(const Name& name, std::size_t bytes)
    : file_(open(fmt::format("/proc/{}/fd/{}", name.process, name.descriptor).c_str(),
                 O_RDWR | O_CLOEXEC)) {
  if (!file_.valid()) {
    fail<Error>(
        "cannot map the memory of process {} on this host: {}; --ranks-per-host 1 does without",
        name.process,
        std::strerror(errno));
  }
  map(bytes);
  file_ = {};  // the mapping keeps it
}

HostMemory::~HostMemory() {
  if (!bytes_.empty()) munmap(bytes_.data(), bytes_.size());
}

HostMemory::HostMemory(HostMemory&& other) noexcept
    : file_(std::move(other.file_)), bytes_(std::exchange(other.bytes_, {})) {}

HostMemory& HostMemory::operator=(HostMemory&& other) noexcept {
  std::swap(file_, other.file_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

HostMemory::Name HostMemory::name() const { return {getpid(), file_.get()}; }

void HostMemory::map(std::size_t bytes) {
  void* p = mmap(
      nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file_.get(), off_t{0});
  if (p == MAP_FAILED) {
    fail<Error>("cannot map {} bytes of shared memory: {}; use fewer ranks or --max-tokens",
                bytes,
                std::strerror(errno));
  }
  bytes_ = {static_cast<std::byte*>(p), bytes};
}

}  // namespace ferry
