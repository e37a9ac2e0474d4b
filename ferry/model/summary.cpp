#include "ferry/model/summary.h"

#include "ferry/placement.h"

namespace ferry {

ModelSummary summarize(const Checkpoint& checkpoint) {
  const ModelConfig& config = checkpoint.config();
  ModelSummary summary;
  for_each_tensor(unstacked(config), [&](const TensorSpec& spec) {
    summary.parameters += spec.elements();
    if (spec.expert >= 0) summary.expert_parameters += spec.elements();
  });
  const std::int64_t experts =
      static_cast<std::int64_t>(config.sparse_layers()) * config.moe.experts;
  if (experts > 0) summary.parameters_per_expert = summary.expert_parameters / experts;
  summary.active_parameters =
      summary.parameters - summary.expert_parameters +
      summary.parameters_per_expert * config.sparse_layers() * config.moe.topk;
  for (const SourceTensor& tensor : checkpoint.source().tensors()) {
    auto& type = summary.by_type[tensor.type];
    ++type.tensors;
    type.bytes += tensor.data.size();
  }
  for (const SourceFile& file : checkpoint.source().files()) summary.file_bytes += file.bytes;
  summary.unused = checkpoint.unused();
  return summary;
}

std::vector<RankBytes> bytes_per_rank(const Checkpoint& checkpoint, int ranks) {
  const Placement placement = Placement::identity(checkpoint.config().moe.experts, ranks);
  std::vector<RankBytes> result(static_cast<std::size_t>(ranks));
  for (SlotId slot = 0; slot < placement.slots(); ++slot) {
    if (placement.expert_of(slot) < 0) continue;
    ++result[static_cast<std::size_t>(placement.rank_of(slot))].experts_held;
  }
  std::uint64_t dense = 0;
  for_each_tensor(unstacked(checkpoint.config()), [&](const TensorSpec& spec) {
    const std::uint64_t bytes = checkpoint.stored_bytes(spec);
    if (spec.expert < 0) {
      dense += bytes;
      return;
    }
    const Rank rank = placement.rank_of(placement.replicas(spec.expert)[0]);
    result[static_cast<std::size_t>(rank)].experts += bytes;
  });
  for (RankBytes& rank : result) rank.dense = dense;
  return result;
}

}  // namespace ferry
