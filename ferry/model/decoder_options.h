// How the ranks of a model work together.
#pragma once

#include <chrono>
#include <optional>

#include "ferry/moe/moe_layer.h"

namespace ferry {

/// All ranks must have the same.
/// Of the devices of a host, each of its ranks has the next one.
inline constexpr int kDeviceOfRank = -1;

struct DecoderOptions {
  int tp = 1;  ///< ranks [g * tp, (g + 1) * tp) hold the same sequences and share out attention,
               ///< dense layers and head; divides the ranks
  int expert_slices = 1;  ///< ranks [g * slices, (g + 1) * slices) hold the same experts, each some
                          ///< of their columns; divides tp
  int max_tokens = 512;   ///< of one group in one step, over all its sequences
  MoeA2ABackend backend = MoeA2ABackend::pplx;       ///< chosen: not `automatic` (choose_backend.h)
  DeepepMode deepep_mode = DeepepMode::low_latency;  ///< matters to backend deepep alone
  std::optional<DispatchFormat> layout;              ///< default: the backend's
  bool two_batch_overlap = false;  ///< half of a step's tokens travel while the others compute
  /// How tokens choose among replicas; `weighted` by the shares of the placements that the decoder
  /// gets. No bit of a result depends on it.
  ReplicaRule replica_rule = ReplicaRule::hash;
  std::optional<WireType> dispatch_wire;  ///< default: the model's activation type
  std::optional<WireType> combine_wire;
  /// Number of the GPU whose memory holds the routed experts, or kDeviceOfRank; none: the host's.
  std::optional<int> experts_device = {};
  std::optional<WireType> kv_type = {};  ///< one of kKvTypes; default: the activation type
  std::chrono::nanoseconds timeout = std::chrono::seconds(30);
};

}  // namespace ferry
