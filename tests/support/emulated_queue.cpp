#include "support/emulated_queue.h"

#include <cstring>

namespace ferry::testing {

namespace {

class Owned final : public GpuMemory {
 public:
  Owned(GpuEmulator& device, std::size_t bytes)
      : GpuMemory(bytes > 0 ? static_cast<std::byte*>(device.allocate(bytes)) : nullptr, bytes),
        device_(device) {
    if (bytes > 0) std::memset(data(), 0, bytes);
  }

  ~Owned() override {
    if (data() != nullptr) device_.free(data());
  }

  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;

 private:
  GpuEmulator& device_;
};

/// A peer's, in the same process.
class Opened final : public GpuMemory {
 public:
  Opened(std::byte* data, std::size_t bytes) : GpuMemory(data, bytes) {}
};

}  // namespace

std::unique_ptr<GpuMemory> EmulatedQueue::allocate(std::size_t bytes) {
  return std::make_unique<Owned>(device_, bytes);
}

std::vector<std::byte> EmulatedQueue::share(const GpuMemory& memory) {
  std::byte* data = memory.data();
  std::vector<std::byte> shared(sizeof data);
  std::memcpy(shared.data(), &data, sizeof data);
  return shared;
}

std::unique_ptr<GpuMemory> EmulatedQueue::open(std::span<const std::byte> shared,
                                               std::size_t bytes) {
  std::byte* data = nullptr;
  std::memcpy(&data, shared.data(), sizeof data);
  return std::make_unique<Opened>(data, bytes);
}

void EmulatedQueue::copy(void* to, const void* from, std::size_t bytes) {
  device_.copy(to, from, bytes);
}

void EmulatedQueue::launch(const GpuKernel& kernel, const GpuGrid& grid) {
  std::visit([&](const auto& k) { device_.launch(k, grid); }, kernel);
}

}  // namespace ferry::testing
