// A queue of the emulated GPU: kernels run on the calling thread, when they are launched.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <vector>

#include "ferry/exchange/gpu/gpu_queue.h"
#include "support/gpu_emulator.h"

namespace ferry::testing {

/// What stands for a CUstream. Work that is put here runs at once, or is kept where a capture goes
/// on: kernels with the values that their arguments have then, copies with their addresses.
/// Threads: one at a time.
class EmulatedStream {
 public:
  using Work = std::function<void()>;

  explicit EmulatedStream(GpuEmulator& device) : device_(device) {}

  GpuEmulator& device() const { return device_; }

  void put(Work work);

  void begin_capture();
  std::vector<Work> end_capture();

  /// As GpuQueue::capturing().
  std::uint64_t capturing() const { return captures_ ? number_ : 0; }

 private:
  GpuEmulator& device_;
  std::vector<Work> kept_;
  std::uint64_t number_ = 0;
  bool captures_ = false;
};

/// One rank's. The emulator is the device, which ranks that are threads share; it outlives all
/// queues and their memory. What it finds is thrown by launch().
class EmulatedQueue : public GpuQueue {
 public:
  EmulatedQueue(GpuEmulator& device, int blocks) : own_(device), stream_(own_), blocks_(blocks) {}

  /// Over a stream of the caller's, which outlives it.
  EmulatedQueue(EmulatedStream& stream, int blocks)
      : own_(stream.device()), stream_(stream), blocks_(blocks) {}

  std::string_view name() const override { return "emulated"; }

  MemoryPlace place() const override {
    return {.kind = MemoryKind::device, .queue = const_cast<EmulatedStream*>(&stream_)};
  }

  std::unique_ptr<GpuMemory> allocate(std::size_t bytes) override;
  std::vector<std::byte> share(const GpuMemory& memory) override;
  std::unique_ptr<GpuMemory> open(std::span<const std::byte> shared, std::size_t bytes) override;
  /// Kernels reach it at an address of its own, where that can be had: of memory that is mapped
  /// shared, as networks have it.
  std::unique_ptr<GpuMapped> map(std::span<std::byte> host) override;
  void copy(void* to, const void* from, std::size_t bytes) override;
  void launch(const GpuKernel& kernel, const GpuGrid& grid) override;

  void synchronise() override { refuse_in_capture("synchronise()"); }

  std::uint64_t capturing() const override { return stream_.capturing(); }

  std::size_t mark() override {
    refuse_in_capture("a mark");
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
  void begin_capture() override { stream_.begin_capture(); }

  std::unique_ptr<GpuGraph> end_capture() override;

  EmulatedStream own_;
  EmulatedStream& stream_;
  const int blocks_;
  std::vector<std::chrono::steady_clock::time_point> marks_;
};

}  // namespace ferry::testing
