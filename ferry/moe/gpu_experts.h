// The experts of one layer in a device's memory, between a GpuExchange's dispatch_recv() and
// combine_send(): two kernels on its queue.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "ferry/exchange/gpu/gpu_queue.h"
#include "ferry/expert_rows.h"
#include "ferry/kernels/kernels.h"
#include "ferry/kernels/packed_matrix.h"

namespace ferry {

struct GpuExpertsOptions {
  int slots = 0;
  int hidden = 0;  ///< a multiple of 16
  int inter = 0;   ///< likewise
  Gating gating = {};
  std::int64_t max_rows = 0;  ///< in expert rows' memory: GpuExchange::expert_rows()
};

/// Weights on the host, as checkpoints stack them: W1's rows before W3's. Borrowed for the call.
struct GpuExpertWeights {
  WeightType type = WeightType::bf16;  ///< or fp8
  std::span<const std::byte> w13;      ///< [slots, 2 * inter, hidden] of `type`
  std::span<const std::byte> w2;       ///< [slots, hidden, inter] of `type`
  /// fp8: a scale for each 128 x 128, [slots, 2, inter / 128, hidden / 128], rounded up.
  std::span<const float> w13_scales;
  std::span<const float> w2_scales;  ///< likewise [slots, hidden / 128, inter / 128]
  std::span<const float> b13;        ///< [slots, 2 * inter]; or empty
  std::span<const float> b2;         ///< [slots, hidden]; or empty
};

/// y = W2 g + b2, g being what Gating makes of W1 x + b1 and W3 x + b3, in bf16 with f32 sums,
/// numeric class `fast`: a row's bits depend on that row and its expert alone. fp8 weights stay fp8
/// in the device's memory. Threads: one at a time. Errors: ConfigError for options, weights and
/// types of rows that it does not take; what goes wrong on the device, from synchronise().
class GpuExperts {
 public:
  /// Copies the weights to the device. fp8: codes of NaN are refused.
  GpuExperts(const GpuExpertsOptions& options, const GpuExpertWeights& weights, GpuQueue& queue);

  /// Puts the experts of these rows on the queue, which outlives them. Returns at once. Rows: of
  /// bf16 or of the wire fp8, where they lie or by pointers. A row's weight multiplies its sums
  /// with W1 and W3, before biases.
  void run(const ExpertRows& rows);

 private:
  void launch(const gpu::GroupedProductArgs& product, bool fp8_rows);

  GpuExpertsOptions options_;
  bool fp8_;
  GpuQueue& queue_;
  std::unique_ptr<GpuMemory> w13_;  // [slots, 2 * inter / 16] of 8 rows of W1, 8 of W3
  std::unique_ptr<GpuMemory> w2_;
  std::unique_ptr<GpuMemory> w13_scales_, w2_scales_;  // fp8
  std::unique_ptr<GpuMemory> b13_, b2_;                // in the order of columns; or null
  std::unique_ptr<GpuMemory> inner_;                   // bf16 [max_rows, inter]
};

}  // namespace ferry
