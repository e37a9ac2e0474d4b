// The experts of one layer in a device's memory, between a GpuExchange's dispatch_recv() and
// combine_send(): two kernels on its queue.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "ferry/exchange/gpu/gpu_queue.h"
#include "ferry/expert_rows.h"

namespace ferry {

struct GpuExpertsOptions {
  int slots = 0;
  int hidden = 0;             ///< a multiple of 16
  int inter = 0;              ///< likewise
  std::int64_t max_rows = 0;  ///< in expert rows' memory: GpuExchange::expert_rows()
};

/// y = W2 (silu(W1 x) * (W3 x)) in bf16 with f32 sums, numeric class `fast`: a row's bits depend on
/// that row and its expert alone. Threads: one at a time. Errors: ConfigError for options and for
/// rows that are not bf16; what goes wrong on the device, from synchronise().
class GpuExperts {
 public:
  /// w13: bf16 [slots, 2 * inter, hidden], W1's rows before W3's, as checkpoints stack them; w2:
  /// bf16 [slots, hidden, inter]. On the host; copied to the device.
  GpuExperts(const GpuExpertsOptions& options,
             std::span<const std::uint16_t> w13,
             std::span<const std::uint16_t> w2,
             GpuQueue& queue);

  /// Puts the experts of these rows on the queue, which outlives them. Returns at once.
  void run(const ExpertRows& rows);

 private:
  GpuExpertsOptions options_;
  GpuQueue& queue_;
  std::unique_ptr<GpuMemory> w13_;  // [slots, 2 * inter / 16] of 8 rows of W1, 8 of W3
  std::unique_ptr<GpuMemory> w2_;
  std::unique_ptr<GpuMemory> inner_;  // bf16 [max_rows, inter]
};

}  // namespace ferry
