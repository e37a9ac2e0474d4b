#include "ferry/model/summary.h"

#include <fmt/core.h>

#include <numeric>
#include <set>

#include "ferry/core/error.h"
#include "ferry/model/layer_tables.h"
#include "ferry/model/packed_pieces.h"
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
    if (checkpoint_.source().packed() != nullptr) {
      for (const PackedPiece* piece : packed_matrix(checkpoint_, tensors, k, {.layer = layer_})) {
        bytes_ += piece->data.size();
        if (!how.type) types_.insert(piece->type);
      }
      return;
    }
    std::vector<StoredMatrix> sources;
    for (const TensorRows& tensor : tensors) sources.push_back(stored(tensor, k));
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

  void rows(HeldRows& /*to*/,
            const TensorRows& tensor,
            std::int64_t width,
            TensorRole /*role*/) override {
    looked_up_ += HeldRows::bytes_of(stored(tensor, width), activation_type(choice_.type));
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

  /// Of what a step reads.
  std::uint64_t bytes() const { return bytes_; }

  /// Of rows that are looked up.
  std::uint64_t looked_up() const { return looked_up_; }

  /// Of the matrices that it has counted, but for those that are always of one.
  const std::set<WeightType>& types() const { return types_; }

 private:
  StoredMatrix stored(const TensorRows& tensor, std::int64_t columns) const {
    return checkpoint_.matrix({.name = tensor_name(checkpoint_.config(), tensor.pattern, layer_),
                               .shape = {tensor.rows, columns},
                               .layer = layer_});
  }

  void add(std::int64_t elements, std::size_t size) {
    bytes_ += static_cast<std::uint64_t>(elements) * size;
  }

  const Checkpoint& checkpoint_;
  const WeightChoice choice_;
  const int layer_;
  const GroupMember alone_;
  std::uint64_t bytes_ = 0;
  std::uint64_t looked_up_ = 0;
  std::set<WeightType> types_;
};

struct Held {
  HeldBytes bytes;
  std::set<WeightType> types;
};

Held held(const Checkpoint& checkpoint, const WeightChoice& choice) {
  const ModelConfig& config = checkpoint.config();
  DenseWeights nothing;
  MemoryCounter outside(checkpoint, choice, -1);
  read_embedding(config, outside, nothing);
  read_head(config, outside, nothing);
  Held all{{.dense = outside.bytes(), .looked_up = outside.looked_up(), .experts = {}},
           outside.types()};
  for (int layer = 0; layer < config.all_layers(); ++layer) {
    MemoryCounter table(checkpoint, choice, layer);
    read_layer(config, layer, table);
    if (layer >= config.layers) read_draft(config, table, nothing);
    all.bytes.dense += table.bytes();
    all.types.insert(table.types().begin(), table.types().end());
    std::uint64_t& expert = all.bytes.experts.emplace_back();
    if (!config.sparse(layer)) continue;
    const FfnLayout layout = expert_layout(checkpoint, choice, expert_part(config), layer);
    expert = expert_block_bytes(layout.view(nullptr, nullptr));
    all.types.insert({layout.gate_up_type, layout.down_type});
  }
  return all;
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

HeldBytes held_bytes(const Checkpoint& checkpoint, const WeightChoice& choice) {
  return held(checkpoint, choice).bytes;
}

std::string held_names(const Checkpoint& checkpoint, const WeightChoice& choice) {
  if (!choice.as_stored) return std::string(weight_type_name(choice.type));
  std::string names;
  for (const WeightType type : held(checkpoint, choice).types) {
    names += names.empty() ? "" : ", ";
    names += weight_type_name(type);
  }
  return names;
}

std::string check_activations(const Checkpoint& checkpoint, const WeightChoice& choice) {
  if (!choice.int8_rows) return {};
  std::string of_bytes;
  std::string others;
  for (const WeightType type : held(checkpoint, choice).types) {
    std::string& names = takes_int8_rows(type) ? of_bytes : others;
    names += names.empty() ? "" : ", ";
    names += weight_type_name(type);
  }
  if (of_bytes.empty()) {
    fail<ConfigError>(
        "--activations int8: no matrix of {} is held as blocks of GGUF or as mxfp4, but as {}; "
        "leave it out, or choose --weights int8, int4 or mxfp4",
        checkpoint.directory(),
        others);
  }
  std::string line = fmt::format("activations: rows become int8 where weights are {}", of_bytes);
  if (!others.empty()) line += fmt::format("; not where they are {}", others);
  return line;
}

std::vector<RankBytes> bytes_per_rank(const Checkpoint& checkpoint, int ranks) {
  const Placement placement = Placement::identity(checkpoint.config().moe.experts, ranks);
  std::vector<RankBytes> result(static_cast<std::size_t>(ranks));
  for (SlotId slot = 0; slot < placement.slots(); ++slot) {
    if (placement.expert_of(slot) < 0) continue;
    ++result[static_cast<std::size_t>(placement.rank_of(slot))].experts_held;
  }
  const HeldBytes held = held_bytes(checkpoint, choose_weights(checkpoint, {}));
  const std::uint64_t blocks =  // one of each sparse layer
      std::accumulate(held.experts.begin(), held.experts.end(), std::uint64_t{0});
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
    rank.memory.dense = held.dense + held.looked_up;
    rank.memory.experts = blocks * static_cast<std::uint64_t>(rank.experts_held);
  }
  return result;
}

}  // namespace ferry
