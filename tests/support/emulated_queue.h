// A queue of the emulated GPU: kernels run on the calling thread, when they are launched.
#pragma once

#include <chrono>
#include <memory>
#include <vector>

#include "ferry/exchange/gpu/gpu_queue.h"
#include "support/gpu_emulator.h"

namespace ferry::testing {

/// One rank's. The emulator is the device, which ranks that are threads share; it outlives all
/// queues and their memory. What it finds is thrown by launch().
class EmulatedQueue final : public GpuQueue {
 public:
  EmulatedQueue(GpuEmulator& device, int blocks) : device_(device), blocks_(blocks) {}

  std::string_view name() const override { return "emulated"; }

  MemoryPlace place() const override {
    return {.kind = MemoryKind::device, .queue = const_cast<EmulatedQueue*>(this)};
  }

  std::unique_ptr<GpuMemory> allocate(std::size_t bytes) override;
  std::vector<std::byte> share(const GpuMemory& memory) override;
  std::unique_ptr<GpuMemory> open(std::span<const std::byte> shared, std::size_t bytes) override;
  void copy(void* to, const void* from, std::size_t bytes) override;
  void launch(const GpuKernel& kernel, const GpuGrid& grid) override;

  void synchronise() override {}

  std::size_t mark() override {
    marks_.push_back(std::chrono::steady_clock::now());
    return marks_.size() - 1;
  }

  double microseconds(std::size_t from, std::size_t to) override {
    return std::chrono::duration<double, std::micro>(marks_[to] - marks_[from]).count();
  }

  void forget_marks() override { marks_.clear(); }

  int resident_blocks(int) const override { return blocks_; }

  std::size_t shared_bytes() const override { return std::size_t{48} << 10; }

 private:
  GpuEmulator& device_;
  const int blocks_;
  std::vector<std::chrono::steady_clock::time_point> marks_;
};

}  // namespace ferry::testing
