#include "support/emulated_queue.h"

#include <sys/mman.h>

#include <cstring>
#include <utility>

#include "ferry/core/error.h"

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

/// A peer's.
class Opened final : public GpuMemory {
 public:
  Opened(GpuEmulator& device, std::byte* data, std::size_t bytes)
      : GpuMemory(data, bytes), device_(device) {}

  ~Opened() override { device_.close(data()); }

  Opened(const Opened&) = delete;
  Opened& operator=(const Opened&) = delete;

 private:
  GpuEmulator& device_;
};

/// The host's, as kernels see it.
class Mapped final : public GpuMapped {
 public:
  Mapped(GpuEmulator& device, void* twin, std::span<std::byte> host)
      : GpuMapped(twin != nullptr ? static_cast<std::byte*>(twin) : host.data(), host),
        device_(device),
        twin_(twin) {
    device.watch(data(), size(), "the host's mapped memory");
  }

  ~Mapped() override {
    device_.unwatch(data());
    if (twin_ != nullptr) munmap(twin_, size());
  }

  Mapped(const Mapped&) = delete;
  Mapped& operator=(const Mapped&) = delete;

  void reads(std::size_t offset, std::size_t bytes) override {
    device_.host_reads(data() + offset, bytes);
  }

  void writes(std::size_t offset, std::size_t bytes) override {
    device_.host_writes(data() + offset, bytes);
  }

 private:
  void tell_acquired(std::size_t offset) override { device_.host_acquired(data() + offset); }

  void tell_releases(std::size_t offset) override { device_.host_released(data() + offset); }

  GpuEmulator& device_;
  void* twin_;  ///< the same pages elsewhere
};

class EmulatedGraph final : public GpuGraph {
 public:
  EmulatedGraph(EmulatedStream& stream, std::vector<EmulatedStream::Work> work)
      : stream_(stream), work_(std::move(work)) {}

  void launch() override {
    for (const EmulatedStream::Work& one : work_) stream_.put(one);
  }

 private:
  EmulatedStream& stream_;
  std::vector<EmulatedStream::Work> work_;
};

}  // namespace

void EmulatedStream::put(Work work) {
  if (captures_) {
    kept_.push_back(std::move(work));
  } else {
    work();
  }
}

void EmulatedStream::begin_capture() {
  FERRY_CHECK(!captures_, "a capture within another");
  captures_ = true;
  ++number_;
}

std::vector<EmulatedStream::Work> EmulatedStream::end_capture() {
  FERRY_CHECK(captures_, "no capture to end");
  captures_ = false;
  return std::exchange(kept_, {});
}

std::unique_ptr<GpuGraph> EmulatedQueue::end_capture() {
  return std::make_unique<EmulatedGraph>(stream_, stream_.end_capture());
}

std::unique_ptr<GpuMemory> EmulatedQueue::allocate(std::size_t bytes) {
  refuse_in_capture("an allocation");
  return std::make_unique<Owned>(stream_.device(), bytes);
}

std::vector<std::byte> EmulatedQueue::share(const GpuMemory& memory) {
  const std::uint64_t number = stream_.device().share(memory.data());
  std::vector<std::byte> shared(sizeof number);
  std::memcpy(shared.data(), &number, sizeof number);
  return shared;
}

std::unique_ptr<GpuMemory> EmulatedQueue::open(std::span<const std::byte> shared,
                                               std::size_t bytes) {
  std::uint64_t number = 0;
  std::memcpy(&number, shared.data(), sizeof number);
  GpuEmulator& device = stream_.device();
  return std::make_unique<Opened>(device, static_cast<std::byte*>(device.open(number)), bytes);
}

std::unique_ptr<GpuMapped> EmulatedQueue::map(std::span<std::byte> host) {
  refuse_in_capture("a mapping");
  // Of no bytes of a shared mapping: one more of the same pages.
  void* const twin = mremap(host.data(), 0, host.size(), MREMAP_MAYMOVE);
  return std::make_unique<Mapped>(stream_.device(), twin == MAP_FAILED ? nullptr : twin, host);
}

void EmulatedQueue::copy(void* to, const void* from, std::size_t bytes) {
  stream_.put([&device = stream_.device(), to, from, bytes] { device.copy(to, from, bytes); });
}

void EmulatedQueue::launch(const GpuKernel& kernel, const GpuGrid& grid) {
  stream_.put([&device = stream_.device(), kernel, grid] {
    std::visit([&](const auto& k) { device.launch(k, grid); }, kernel);
  });
}

}  // namespace ferry::testing
