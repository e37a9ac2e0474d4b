// Packer: what packed weights are made of a checkpoint's tensors with.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "ferry/checkpoint/pack_stored.h"
#include "ferry/model/tensor_table.h"
#include "ferry/model/weights.h"

namespace ferry {

struct PackedPiece;

/// The layer and the routed expert that a pattern stands for; -1: none.
struct TensorPlace {
  int layer = -1;
  int expert = -1;
};

/// The shapes of a packed block, whole or a slice of it: a member's columns of each product, and no
/// memory for the others'.
struct FfnLayout {
  WeightType gate_up_type = WeightType::f32;
  WeightType down_type = WeightType::f32;
  std::int64_t hidden = 0;
  std::int64_t inter = 0;
  bool biased = false;
  GroupMember slice = {};

  std::size_t gate_up_bytes() const;
  std::size_t down_bytes() const;
  GatedFfnWeights view(const std::byte* gate_up, const std::byte* down) const;
};

/// How these are held where they must be of one type: in that of each, else as elements.
WeightType type_for(const WeightChoice& choice, std::span<const StoredMatrix> sources);

/// Tensors that become one strip of a matrix.
struct StripPlan {
  WeightType type = WeightType::f32;
  std::span<const StoredMatrix> sources;  // [columns, k] each, one behind the other
  std::int64_t columns = 0;               // of all of them

  std::size_t bytes() const;
};

/// The strips of a matrix made of these: a new one wherever the type in which a tensor is held is
/// another than that of the one before it. REQUIRES: sources is not empty.
std::vector<StripPlan> plan_strips(const WeightChoice& choice,
                                   const MatrixPacking& how,
                                   std::span<const StoredMatrix> sources);

/// A block outside the routed experts.
FfnLayout ffn_layout(const Checkpoint& checkpoint,
                     const WeightChoice& choice,
                     const FfnPart& part,
                     const TensorPlace& at);

/// Each expert of a sparse layer, whose blocks are alike. `slice`: its columns that are here.
FfnLayout expert_layout(const Checkpoint& checkpoint,
                        const WeightChoice& choice,
                        const FfnPart& expert,
                        int layer,
                        const GroupMember& slice = {});

/// Packs tensors of one checkpoint on all threads and counts the bytes read. Borrows all but the
/// choice and the member. Threads: one at a time. Errors: ModelError that names the tensor.
class Packer {
 public:
  Packer(const Checkpoint& checkpoint,
         const WeightChoice& weights,
         ThreadPool& pool,
         const LoadProgress& progress,
         std::uint64_t total,
         const GroupMember& member = {});

  /// Vectors as f32, one behind the other.
  std::vector<float> vector(const TensorList& tensors, const TensorPlace& at);

  /// A tensor [rows, 1, taps] as f32.
  std::vector<float> taps(const TensorRows& tensor, std::int64_t taps, const TensorPlace& at);

  /// Matrices [rows, k] packed as one of [k, sum of rows], in as many strips as they have types.
  OwnedMatrix matrix(const TensorList& tensors,
                     std::int64_t k,
                     const MatrixPacking& how,
                     const TensorPlace& at);

  /// Rows to be looked up as elements of the activations' type.
  HeldRows rows(const TensorRows& tensor, std::int64_t width, const TensorPlace& at);

  /// A gated block into memory of this layout, of a whole one the member's share; gate's and up's
  /// panels alternate.
  void ffn(const FfnPart& part,
           const TensorPlace& at,
           const FfnLayout& layout,
           std::byte* gate_up,
           std::byte* down);

  /// The biases of a block of this layout: gate's and up's as their columns lie in panels, then
  /// down's.
  void ffn_biases(const FfnPart& part, const TensorPlace& at, const FfnLayout& layout, float* out);

  OwnedFfn ffn(const FfnPart& part, const TensorPlace& at);

  /// A block of this layout in one piece, biases and all: [expert_block_bytes].
  void block(const FfnPart& part, const TensorPlace& at, const FfnLayout& layout, std::byte* block);

  /// Such a block where it lies in the file. REQUIRES: in_place(), a layout of whole blocks.
  const std::byte* block_in_place(const FfnPart& part, const TensorPlace& at);

  /// Whether weights stay where the checkpoint has them: it is packed, and that was the choice.
  bool in_place() const;

  /// Hands `pack` the matrix as it is stored, and counts it.
  void own_way(const TensorRows& tensor,
               std::int64_t k,
               FunctionRef<void(const StoredMatrix&, Packer&)> pack,
               const TensorPlace& at);

  /// Memory for a matrix [k, n] a head, of elements: codes share scales the other way round.
  HeadMatrices head_matrices(std::int64_t num_heads, std::int64_t k, std::int64_t n) const;

  /// Packs [n, k] numbers where `matrix` lies, in memory of this object's making.
  static void pack_f32(const float* source, const PackedMatrix& matrix);

  const GroupMember& member() const { return member_; }

  ThreadPool& pool() const { return pool_; }

 private:
  /// Of shape [rows, columns], or [rows] where there are no columns.
  StoredMatrix find(std::string_view pattern,
                    std::int64_t rows,
                    std::optional<std::int64_t> columns,
                    const TensorPlace& at) const;
  StoredMatrix find(std::string_view pattern,
                    std::vector<std::int64_t> shape,
                    const TensorPlace& at) const;

  void done_with(const StoredMatrix& matrix);

  /// Counts the tensors of a block.
  void done_with(const FfnPart& part, const TensorPlace& at);

  /// These columns of what such pieces hold, a strip each.
  OwnedMatrix packed(std::span<const PackedPiece* const> pieces,
                     const MatrixPacking& how,
                     std::span<const ColumnRange> wanted);

  WeightType type_of_elements() const { return weight_type(activation_type(weights_.type)); }

  void pack(std::span<const StoredMatrix> sources, const PackTarget& target);

  void report(std::size_t bytes);

  const Checkpoint& checkpoint_;
  WeightChoice weights_;
  ThreadPool& pool_;
  const LoadProgress& progress_;
  const GroupMember member_;  // whose columns of shared out matrices are packed
  std::uint64_t total_;
  std::uint64_t done_ = 0;
};

/// The tables' loader for one layer, or with -1 for what lies outside the layers.
class LayerPacker final : public TensorTable {
 public:
  LayerPacker(Packer& packer, int layer) : packer_(packer), at_{.layer = layer} {}

  void matrix(OwnedMatrix& to,
              const TensorList& tensors,
              std::int64_t k,
              const MatrixPacking& how) override {
    to = packer_.matrix(tensors, k, how, at_);
  }

  void vector(std::vector<float>& to, const TensorList& tensors, TensorRole) override {
    to = packer_.vector(tensors, at_);
  }

  void taps(std::vector<float>& to, const TensorRows& tensor, std::int64_t taps) override {
    to = packer_.taps(tensor, taps, at_);
  }

  void rows(HeldRows& to, const TensorRows& tensor, std::int64_t width, TensorRole) override {
    to = packer_.rows(tensor, width, at_);
  }

  void ffn(OwnedFfn& to, const FfnPart& part) override { to = packer_.ffn(part, at_); }

  void own_way(const TensorRows& tensor,
               std::int64_t k,
               FunctionRef<void(const StoredMatrix&, Packer&)> pack) override {
    packer_.own_way(tensor, k, pack, at_);
  }

  const GroupMember& member() const override { return packer_.member(); }

 private:
  Packer& packer_;
  const TensorPlace at_;
};

}  // namespace ferry
