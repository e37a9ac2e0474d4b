// Packer: what weights.cpp makes packed weights of a checkpoint's tensors with.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "ferry/checkpoint/pack_stored.h"
#include "ferry/model/weights.h"

namespace ferry {

/// Names of the three matrices of a gated feed-forward block, and of their biases.
struct FfnNames {
  std::string_view gate, up, down;
  std::string_view gate_bias = {}, up_bias = {}, down_bias = {};
};

/// The shapes of a packed block.
struct FfnLayout {
  WeightType type = WeightType::f32;
  std::int64_t hidden = 0;
  std::int64_t inter = 0;
  bool biased = false;

  std::size_t gate_up_bytes() const;
  std::size_t down_bytes() const;
  GatedFfnWeights view(const std::byte* gate_up, const std::byte* down) const;
};

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

  /// The tensors that names stand for from now on.
  void at(int layer, int expert = -1);

  /// Vectors as f32, one behind the other.
  std::vector<float> vector(
      std::initializer_list<std::pair<std::string_view, std::int64_t>> names_and_sizes);

  using NamesAndRows = std::initializer_list<std::pair<std::string_view, std::int64_t>>;

  /// Matrices [n, k] packed as one of [k, n + n + ..], of the chosen type where none is given.
  /// `panels`: those that are wanted; empty: all.
  OwnedMatrix matrix(NamesAndRows names_and_rows,
                     std::int64_t k,
                     std::optional<WeightType> wanted = {},
                     std::span<const PanelRange> panels = {});

  /// The heads' key and value matrices of a latent_up: rows of plain_dim keys, then value_dim
  /// values, head by head. Those of keys lie the other way round than it, as queries meet them.
  /// Packs those of the member's heads.
  std::pair<HeadMatrices, HeadMatrices> latent_head_matrices(std::string_view name,
                                                             int num_heads,
                                                             const LatentConfig& latent);

  /// The member's share of such a matrix.
  OwnedMatrix shared_out(NamesAndRows names_and_rows, std::int64_t k);

  const GroupMember& member() const { return member_; }

  /// The member's share of a gated block into memory of this layout; gate's and up's panels
  /// alternate.
  void ffn(const FfnNames& names, const FfnLayout& layout, std::byte* gate_up, std::byte* down);

  /// The block's biases: gate's and up's as their columns lie in panels, then down's.
  void ffn_biases(const FfnNames& names, const FfnLayout& layout, float* out);

  OwnedFfn ffn(const FfnNames& names, std::int64_t inter);

  /// Rows as elements of the activations' type.
  Buffer rows(std::string_view name, std::int64_t rows, std::int64_t width);

 private:
  std::string named(std::string_view pattern) const {
    return tensor_name(checkpoint_.names(), pattern, layer_, expert_);
  }

  StoredMatrix find(std::string_view name, std::vector<std::int64_t> shape) const;

  StoredMatrix find_matrix(std::string_view name, std::int64_t rows, std::int64_t columns) const {
    return find(name, {rows, columns});
  }

  void done_with(const StoredMatrix& matrix);

  /// How a matrix made of these is held.
  WeightType type_for(std::span<const StoredMatrix> sources) const;

  /// Memory for a matrix [k, n] a head, of elements: codes share scales the other way round.
  HeadMatrices head_matrices(std::int64_t num_heads, std::int64_t k, std::int64_t n) const;

  /// Packs [n, k] numbers where `matrix` lies, in memory of this object's making.
  static void pack_f32(const float* source, const PackedMatrix& matrix);

  void pack(std::span<const StoredMatrix> sources, const PackTarget& target);

  void report(std::size_t bytes);

  const Checkpoint& checkpoint_;
  WeightChoice weights_;
  ThreadPool& pool_;
  const LoadProgress& progress_;
  const GroupMember member_;  // whose columns of shared out matrices are packed
  int layer_ = -1;
  int expert_ = -1;
  std::uint64_t total_;
  std::uint64_t done_ = 0;
};

}  // namespace ferry
