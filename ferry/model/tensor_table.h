// The tables that say, once, which tensors a part of a model has, how large they are and how they
// are packed. The same table is read by whoever lists tensors (for_each_tensor) and by the loader
// (Packer), so that a name or a shape stands in one place.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "ferry/checkpoint/held_rows.h"
#include "ferry/checkpoint/stored_matrix.h"
#include "ferry/compute/tensor_group.h"
#include "ferry/function_ref.h"
#include "ferry/model/family.h"
#include "ferry/model/owned_weights.h"

namespace ferry {

class Packer;

/// A tensor by its pattern: rows of a matrix [rows, k], or elements of a vector.
struct TensorRows {
  std::string_view pattern;
  std::int64_t rows = 0;
};

using TensorList = std::vector<TensorRows>;

/// How a matrix is held.
struct MatrixPacking {
  TensorRole role = TensorRole::matrix;
  std::optional<WeightType> type = {};        ///< none: as the user chose
  std::span<const ColumnRange> columns = {};  ///< those that are wanted, rising; empty: all
  bool shared_out = false;                    ///< the member's columns alone, instead of `columns`
  bool listed_before = false;                 ///< the table names this tensor in another place
  bool elements = false;                      ///< of the activations' type, whatever the user chose
};

/// Names of the three matrices of a gated feed-forward block, and of their biases.
struct FfnNames {
  std::string_view gate, up, down;
  std::string_view gate_bias = {}, up_bias = {}, down_bias = {};
};

/// A gated feed-forward block: gate and up [inter, H], down [H, inter], and biases where it has
/// some.
struct FfnPart {
  FfnNames names;
  std::int64_t hidden = 0;
  std::int64_t inter = 0;
  bool biased = false;
};

/// Reads one part of a model from its table. What a function of it is given to fill in stays empty
/// where tensors are only listed. Patterns are filled in with the layer that the reader stands for.
class TensorTable {
 public:
  virtual ~TensorTable() = default;

  /// Matrices [rows, k], packed side by side as one [k, sum of rows]: a strip for those of one type
  /// that follow each other.
  virtual void matrix(OwnedMatrix& to,
                      const TensorList& tensors,
                      std::int64_t k,
                      const MatrixPacking& how) = 0;
  /// Vectors as f32, one behind the other.
  virtual void vector(std::vector<float>& to, const TensorList& tensors, TensorRole role) = 0;
  /// What each channel is convolved with, [rows, 1, taps], as f32.
  virtual void taps(std::vector<float>& to, const TensorRows& tensor, std::int64_t taps) = 0;
  /// A matrix [rows, width] whose rows are looked up, as the activations' type.
  virtual void rows(HeldRows& to,
                    const TensorRows& tensor,
                    std::int64_t width,
                    TensorRole role) = 0;
  virtual void ffn(OwnedFfn& to, const FfnPart& part) = 0;
  /// A matrix [rows, k] that a mixer packs in its own way.
  virtual void own_way(const TensorRows& tensor,
                       std::int64_t k,
                       FunctionRef<void(const StoredMatrix&, Packer&)> pack) = 0;

  /// Whose share is packed.
  virtual const GroupMember& member() const = 0;
};

/// A norm's weights, as rows are multiplied by them.
void read_norm(const ModelConfig& config,
               TensorTable& table,
               std::vector<float>& to,
               const TensorRows& tensor);

}  // namespace ferry
