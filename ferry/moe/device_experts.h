// A rank's experts in a device's memory, for a model whose rows lie on the host: rows go there, and
// results come back.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "ferry/buffer.h"
#include "ferry/compute/gated_ffn.h"
#include "ferry/core/threads.h"
#include "ferry/exchange/gpu/gpu_queue.h"
#include "ferry/expert_rows.h"
#include "ferry/moe/gpu_experts.h"

namespace ferry {

/// The experts of all layers that share a context. Numeric class `fast`, as GpuExperts. Threads:
/// one call at a time; uses the pool. Owns the copies of weights on the device and the memory that
/// rows travel through; borrows queue and pool.
class DeviceExperts {
 public:
  /// `options`: of each layer; max_rows are computed in one turn.
  DeviceExperts(const GpuExpertsOptions& options, GpuQueue& queue, ThreadPool& pool);

  /// Copies a layer's experts to the device; slots without data have none there. Their owner may
  /// not put others in their place afterwards. Throws ConfigError for other weights than bf16 and
  /// fp8 with scales for 128 x 128.
  void load(int layer, std::span<const GatedFfnWeights> slots);

  /// What Experts::run() does, of bf16 rows on the host. Returns when results have come back.
  void run(int layer, const ExpertRows& rows);

 private:
  /// Rows of one slot that are done in one turn.
  struct Segment {
    std::int64_t first = 0;  ///< of ExpertRows
    std::int64_t count = 0;
    std::int64_t place = 0;  ///< its first row on the device
  };

  void run_turn(GpuExperts& experts, const ExpertRows& rows);

  GpuExpertsOptions options_;
  GpuQueue& queue_;
  ThreadPool& pool_;
  std::vector<std::unique_ptr<GpuExperts>> layers_;  // by number; dense ones have none
  std::unique_ptr<GpuMemory> in_;                    // bf16 [max_rows, hidden]
  std::unique_ptr<GpuMemory> out_;                   // f32 [max_rows, hidden]
  std::unique_ptr<GpuMemory> counts_;                // i32 [slots]
  std::unique_ptr<GpuMemory> offsets_;               // i64 [slots]
  std::unique_ptr<GpuMemory> weights_;               // f32 [max_rows], of rows that have some
  Buffer host_in_;
  Buffer host_out_;
  std::vector<float> host_weights_;
  std::vector<std::int32_t> host_counts_;
  std::vector<std::int64_t> host_offsets_;
  std::vector<Segment> segments_;  // of the turn, one a slot
};

}  // namespace ferry
