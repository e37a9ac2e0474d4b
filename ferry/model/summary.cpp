#include "ferry/model/summary.h"

#include <set>

#include "ferry/model/layer_tables.h"
#include "ferry/model/packer.h"
#include "ferry/model/weights.h"
#include "ferry/placement.h"

namespace ferry {

namespace {

/// Counts the memory that the tables' tensors become.
class MemoryCounter final : public TensorTable {
 public:
  MemoryCounter(const Checkpoint& checkpoint, const WeightChoice& choice, int layer)
      : checkpoint_(checkpoint), choice_(choice), layer_(layer) {}

  void matrix(OwnedMatrix& /*to*/,
              const TensorList& tensors,
              std::int64_t k,
              const MatrixPacking& how) override {
    std::vector<StoredMatrix> sources;
    for (const TensorRows& tensor : tensors) {
      sources.push_back(
          checkpoint_.matrix({.name = tensor_name(checkpoint_.names(), tensor.pattern, layer_),
                              .shape = {tensor.rows, k},
                              .layer = layer_}));
    }
    for (const StripPlan& strip : plan_strips(choice_, how, sources)) {
      bytes_ += strip.bytes();
      if (!how.type) types_.insert(strip.type);
    }
  }

  void vector(std::vector<float>& /*to*/, const TensorList& tensors, TensorRole /*role*/) override {
    for (const TensorRows& tensor : tensors) add(tensor.rows, sizeof(float));
  }

  void taps(std::vector<float>& /*to*/, const TensorRows& tensor, std::int64_t taps) override {
    add(tensor.rows * taps, sizeof(float));
  }

  void rows(Buffer& /*to*/,
            const TensorRows& tensor,
            std::int64_t width,
            TensorRole /*role*/) override {
    add(tensor.rows * width, dtype_bytes(activation_type(choice_.type)));
  }

  void ffn(OwnedFfn& /*to*/, const FfnPart& part) override {
    const FfnLayout layout = ffn_layout(checkpoint_, choice_, part, {.layer = layer_});
    bytes_ += layout.gate_up_bytes() + layout.down_bytes();
    types_.insert({layout.gate_up_type, layout.down_type});
  }

  /// A mixer's own matrices are of elements, with a little more for panels that are not full.
  void own_way(const TensorRows& tensor,
               std::int64_t k,
               FunctionRef<void(const StoredMatrix&, Packer&)> /*pack*/) override {
    add(tensor.rows * k, dtype_bytes(activation_type(choice_.type)));
  }

  const GroupMember& member() const override { return alone_; }

  std::uint64_t bytes() const { return bytes_; }

  /// Of the matrices that it has counted, but for those that are always of one.
  const std::set<WeightType>& types() const { return types_; }

 private:
  void add(std::int64_t elements, std::size_t size) {
    bytes_ += static_cast<std::uint64_t>(elements) * size;
  }

  const Checkpoint& checkpoint_;
  const WeightChoice choice_;
  const int layer_;
  const GroupMember alone_;
  std::uint64_t bytes_ = 0;
  std::set<WeightType> types_;
};

/// Of all but the routed experts.
struct DenseMemory {
  std::uint64_t bytes = 0;
  std::set<WeightType> types;
};

DenseMemory dense_memory(const Checkpoint& checkpoint, const WeightChoice& choice) {
  const ModelConfig& config = checkpoint.config();
  DenseWeights nothing;
  MemoryCounter outside(checkpoint, choice, -1);
  read_embedding(config, outside, nothing);
  read_head(config, outside, nothing);
  DenseMemory memory{outside.bytes(), outside.types()};
  for (int layer = 0; layer < config.layers; ++layer) {
    MemoryCounter table(checkpoint, choice, layer);
    read_layer(config, layer, table);
    memory.bytes += table.bytes();
    memory.types.insert(table.types().begin(), table.types().end());
  }
  return memory;
}

}  // namespace

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

std::string held_names(const Checkpoint& checkpoint, const WeightChoice& choice) {
  if (!choice.as_stored) return std::string(weight_type_name(choice.type));
  const ModelConfig& config = checkpoint.config();
  std::set<WeightType> types = dense_memory(checkpoint, choice).types;
  for (int layer = 0; layer < config.layers; ++layer) {
    if (!config.sparse(layer)) continue;
    const FfnLayout layout = expert_layout(checkpoint, choice, expert_part(config), layer);
    types.insert({layout.gate_up_type, layout.down_type});
  }
  std::string names;
  for (const WeightType type : types) {
    names += names.empty() ? "" : ", ";
    names += weight_type_name(type);
  }
  return names;
}

std::vector<RankBytes> bytes_per_rank(const Checkpoint& checkpoint, int ranks) {
  const Placement placement = Placement::identity(checkpoint.config().moe.experts, ranks);
  std::vector<RankBytes> result(static_cast<std::size_t>(ranks));
  for (SlotId slot = 0; slot < placement.slots(); ++slot) {
    if (placement.expert_of(slot) < 0) continue;
    ++result[static_cast<std::size_t>(placement.rank_of(slot))].experts_held;
  }
  const ModelConfig& config = checkpoint.config();
  const WeightChoice choice = choose_weights(checkpoint, {});
  const std::uint64_t dense = dense_memory(checkpoint, choice).bytes;
  std::uint64_t blocks = 0;  // one of each sparse layer
  for (int layer = 0; layer < config.layers; ++layer) {
    if (!config.sparse(layer)) continue;
    const FfnLayout layout = expert_layout(checkpoint, choice, expert_part(config), layer);
    blocks += expert_block_bytes(layout.view(nullptr, nullptr));
  }
  std::uint64_t dense_in_file = 0;
  for_each_tensor(unstacked(checkpoint.config()), [&](const TensorSpec& spec) {
    const std::uint64_t bytes = checkpoint.stored_bytes(spec);
    if (spec.expert < 0) {
      dense_in_file += bytes;
      return;
    }
    const Rank rank = placement.rank_of(placement.replicas(spec.expert)[0]);
    result[static_cast<std::size_t>(rank)].file.experts += bytes;
  });
  for (RankBytes& rank : result) {
    rank.file.dense = dense_in_file;
    rank.memory.dense = dense;
    rank.memory.experts = blocks * static_cast<std::uint64_t>(rank.experts_held);
  }
  return result;
}

}  // namespace ferry
