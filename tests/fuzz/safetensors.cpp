// A safetensors file: header and data, through the same mapping as a real one.
#include "ferry/checkpoint/safetensors.h"

#include <sys/mman.h>
#include <unistd.h>

#include "fuzz/fuzz_entry.h"

namespace {

/// A file in memory, with a path.
class MemoryFile {
 public:
  MemoryFile(const std::uint8_t* data, std::size_t size) : fd_(memfd_create("fuzz", MFD_CLOEXEC)) {
    if (fd_ < 0 || write(fd_, data, size) != static_cast<ssize_t>(size)) std::abort();
  }

  ~MemoryFile() { close(fd_); }

  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  std::string path() const { return "/proc/self/fd/" + std::to_string(fd_); }

 private:
  int fd_;
};

}  // namespace

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const MemoryFile memory(data, size);
  ferry::test::run_on_input([&] {
    const ferry::SafetensorsFile file(memory.path());
    volatile unsigned sum = 0;  // every byte that the header promises is there
    for (const auto& entry : file.entries()) {
      for (const std::byte b : file.data(entry)) sum = sum + std::to_integer<unsigned>(b);
      if (file.find(entry.name) == nullptr) std::abort();
    }
  });
  return 0;
}
