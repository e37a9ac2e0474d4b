#include "ferry/model/summary.h"

#include "ferry/model/layer_tables.h"
#include "ferry/model/packer.h"
#include "ferry/model/weights.h"
#include "ferry/placement.h"

namespace ferry {

namespace {

std::uint64_t packed_matrix_bytes(WeightType type, std::int64_t k, std::int64_t columns) {
  return PackedMatrix::packed_panel_bytes(type, k) *
         static_cast<std::uint64_t>(ceil_div(columns, kPanelColumns));
}

/// Counts the memory that the tables' tensors become.
class MemoryCounter final : public TensorTable {
 public:
  MemoryCounter(const Checkpoint& checkpoint, const WeightChoice& choice, int layer)
      : checkpoint_(checkpoint), choice_(choice), layer_(layer) {}

  void matrix(OwnedMatrix& /*to*/,
              const TensorList& tensors,
              std::int64_t k,
              const MatrixPacking& how) override {
    bool plain = true;
    std::int64_t columns = 0;
    for (const TensorRows& tensor : tensors) {
      plain = plain && is_plain(tensor.pattern, tensor.rows, k);
      columns += tensor.rows;
    }
    const WeightType type = how.elements ? elements() : how.type.value_or(held(plain));
    bytes_ += packed_matrix_bytes(type, k, columns);
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
    const FfnLayout layout{
        held(is_plain(part.names.gate, part.inter, part.hidden)), part.hidden, part.inter};
    bytes_ += layout.gate_up_bytes() + layout.down_bytes();
  }

  /// A mixer's own matrices are of elements, with a little more for panels that are not full.
  void own_way(const TensorRows& tensor,
               std::int64_t k,
               FunctionRef<void(const StoredMatrix&, Packer&)> /*pack*/) override {
    add(tensor.rows * k, dtype_bytes(activation_type(choice_.type)));
  }

  const GroupMember& member() const override { return alone_; }

  std::uint64_t bytes() const { return bytes_; }

 private:
  void add(std::int64_t elements, std::size_t size) {
    bytes_ += static_cast<std::uint64_t>(elements) * size;
  }

  bool is_plain(std::string_view pattern, std::int64_t rows, std::int64_t k) const {
    return checkpoint_
        .matrix({.name = tensor_name(checkpoint_.names(), pattern, layer_),
                 .shape = {rows, k},
                 .layer = layer_})
        .is_plain();
  }

  WeightType elements() const { return weight_type(activation_type(choice_.type)); }

  /// As the packer decides.
  WeightType held(bool plain) const {
    return plain && choice_.plain_stays ? elements() : choice_.type;
  }

  const Checkpoint& checkpoint_;
  const WeightChoice choice_;
  const int layer_;
  const GroupMember alone_;
  std::uint64_t bytes_ = 0;
};

std::uint64_t dense_memory(const Checkpoint& checkpoint, const WeightChoice& choice) {
  const ModelConfig& config = checkpoint.config();
  DenseWeights nothing;
  MemoryCounter outside(checkpoint, choice, -1);
  read_embedding(config, outside, nothing);
  read_head(config, outside, nothing);
  std::uint64_t bytes = outside.bytes();
  for (int layer = 0; layer < config.layers; ++layer) {
    MemoryCounter table(checkpoint, choice, layer);
    read_layer(config, layer, table);
    bytes += table.bytes();
  }
  return bytes;
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

std::vector<RankBytes> bytes_per_rank(const Checkpoint& checkpoint, int ranks) {
  const Placement placement = Placement::identity(checkpoint.config().moe.experts, ranks);
  std::vector<RankBytes> result(static_cast<std::size_t>(ranks));
  for (SlotId slot = 0; slot < placement.slots(); ++slot) {
    if (placement.expert_of(slot) < 0) continue;
    ++result[static_cast<std::size_t>(placement.rank_of(slot))].experts_held;
  }
  const ModelConfig& config = checkpoint.config();
  const WeightChoice choice = choose_weights(checkpoint, {});
  const std::uint64_t dense = dense_memory(checkpoint, choice);
  const FfnPart expert = expert_part(config);
  const FfnLayout layout{choice.type, expert.hidden, expert.inter, expert.biased};
  const std::uint64_t block =
      config.sparse_layers() > 0 ? expert_block_bytes(layout.view(nullptr, nullptr)) : 0;
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
    rank.memory.experts = block * static_cast<std::uint64_t>(rank.experts_held) *
                          static_cast<std::uint64_t>(config.sparse_layers());
  }
  return result;
}

}  // namespace ferry
