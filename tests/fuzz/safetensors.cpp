// A safetensors file: header and data, through the same mapping as a real one.
#include "ferry/checkpoint/safetensors.h"

#include "fuzz/fuzz_entry.h"
#include "fuzz/memory_file.h"

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const ferry::test::MemoryFile memory(data, size);
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
