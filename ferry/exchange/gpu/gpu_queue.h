// A queue of a GPU: memory, and kernels that run in the order in which they are put there. CUDA's
// is a stream (cuda_queue.cpp); that of the emulator runs the same kernels on a host
// (tests/support/emulated_queue.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <variant>
#include <vector>

#include "ferry/exchange/gpu/combine_results.h"
#include "ferry/exchange/gpu/gpu_memory.h"
#include "ferry/exchange/gpu/rank_sums.h"
#include "ferry/exchange/gpu/receive_tokens.h"
#include "ferry/exchange/gpu/send_far.h"
#include "ferry/exchange/gpu/send_tokens.h"
#include "ferry/function_ref.h"
#include "ferry/kernels/gpu/grouped_product.h"
#include "ferry/kernels/gpu/product_peak.h"
#include "ferry/memory_kind.h"

namespace ferry {

/// All kernels: those of an exchange, those of experts, and what benchmarks hold these against.
using GpuKernel = std::variant<gpu::SendTokens,
                               gpu::ReceiveTokens,
                               gpu::SendResults,
                               gpu::SendSums,
                               gpu::SumResults,
                               gpu::SendFarTokens,
                               gpu::SendFarResults,
                               gpu::ProductBf16,
                               gpu::ProductBf16Fp8,
                               gpu::ProductFp8Bf16,
                               gpu::ProductFp8,
                               gpu::ProductPeak>;

/// Work that a queue has captured, with the arguments that it was given: what may differ from one
/// launch to the next is read from device memory. May be destroyed at any time, also while a launch
/// runs; not launched once the queue, or memory that the work reaches, is gone. Threads and errors:
/// as those of its queue.
class GpuGraph {
 public:
  GpuGraph() = default;
  virtual ~GpuGraph() = default;
  GpuGraph(const GpuGraph&) = delete;
  GpuGraph& operator=(const GpuGraph&) = delete;

  /// Puts all of the work on the queue that captured it.
  virtual void launch() = 0;
};

/// Owned by who made it; outlives what was allocated or captured from it. Threads: one at a time.
/// Errors: an Error of the driver's (cuda_queue.cpp) or what the emulator found, from this call or
/// a later one.
class GpuQueue {
 public:
  GpuQueue() = default;
  virtual ~GpuQueue() = default;
  GpuQueue(const GpuQueue&) = delete;
  GpuQueue& operator=(const GpuQueue&) = delete;

  virtual std::string_view name() const = 0;

  /// Device memory that is valid for work on this queue.
  virtual MemoryPlace place() const = 0;

  /// Zeroed device memory, aligned to 256 bytes.
  virtual std::unique_ptr<GpuMemory> allocate(std::size_t bytes) = 0;

  /// What a peer on this host needs to open `memory`: plain bytes, of one size on all ranks.
  virtual std::vector<std::byte> share(const GpuMemory& memory) = 0;
  virtual std::unique_ptr<GpuMemory> open(std::span<const std::byte> shared, std::size_t bytes) = 0;

  /// For kernels of any device's queue, until it is destroyed. As for allocate(), none may be
  /// waiting for this rank.
  virtual std::unique_ptr<GpuMapped> map(std::span<std::byte> host) = 0;

  /// Between host and device, either way, behind what the queue has; the host's side may be used
  /// again when synchronise() returns.
  virtual void copy(void* to, const void* from, std::size_t bytes) = 0;

  virtual void launch(const GpuKernel& kernel, const GpuGrid& grid) = 0;

  /// Returns when everything that was put here is done.
  virtual void synchronise() = 0;

  /// Keeps what `work` puts here instead of running it. Of such work, copies read and write the
  /// host's memory at each launch. A BrokenContract meanwhile: allocate(), synchronise(), marks,
  /// another capture. What `work` throws ends the capture and is thrown. As for
  /// allocate(), no kernel of a peer's on this device may be waiting for this rank.
  std::unique_ptr<GpuGraph> capture(FunctionRef<void()> work);

  /// The number of the capture that goes on here, begun by capture() or, on a stream of the
  /// caller's, by the caller; 0: none.
  virtual std::uint64_t capturing() const = 0;

  /// Throws BrokenContract while something is captured, which `call` would have to wait for.
  void refuse_in_capture(std::string_view call) const;

  /// Notes the time when everything put here so far is done; gives the mark's number, from 0.
  virtual std::size_t mark() = 0;
  /// Between two marks, after synchronise().
  virtual double microseconds(std::size_t from, std::size_t to) = 0;
  virtual void forget_marks() = 0;

  /// Blocks of `threads` threads that may be on the device at once for this queue: what a kernel
  /// whose blocks wait for other ranks' must not exceed.
  virtual int resident_blocks(int threads) const = 0;

  /// Shared memory that a block can have.
  virtual std::size_t shared_bytes() const = 0;

 private:
  virtual void begin_capture() = 0;
  virtual std::unique_ptr<GpuGraph> end_capture() = 0;
};

/// Device memory with these values. Waits for the queue.
template <class T>
std::unique_ptr<GpuMemory> upload(GpuQueue& queue, std::span<const T> from) {
  std::unique_ptr<GpuMemory> memory = queue.allocate(from.size_bytes());
  queue.copy(memory->data(), from.data(), from.size_bytes());
  queue.synchronise();
  return memory;
}

/// Values of device memory, behind what the queue has. Waits for it.
template <class T>
std::vector<T> download(GpuQueue& queue, const T* from, std::size_t n) {
  queue.refuse_in_capture("a download");
  std::vector<T> to(n);
  queue.copy(to.data(), from, n * sizeof(T));
  queue.synchronise();
  return to;
}

}  // namespace ferry
