// A matrix as it lies in a checkpoint's files: plain elements, or codes that share scales.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>

#include "ferry/checkpoint/quant_spec.h"
#include "ferry/checkpoint/tensor_view.h"
#include "ferry/core/types.h"
#include "ferry/kernels/packed_matrix.h"

namespace ferry {

struct StoredMatrix;

/// Rows [first, first + count) of a matrix as f32, one behind the other. Threads: called from
/// several at once.
using RowReader = std::function<void(
    const StoredMatrix& matrix, std::int64_t first, std::int64_t count, float* out)>;

/// Row `row`'s codes and scales, as quantize_row writes them. Threads: likewise.
using CodeReader = std::function<void(
    const StoredMatrix& matrix, std::int64_t row, std::byte* codes, float* scales)>;

/// Borrowed from the files. Threads: safe for several.
struct StoredMatrix {
  QuantSpec quant;           ///< what its codes stand for
  DType dtype = DType::f32;  ///< of plain elements
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::span<const std::byte> data;  ///< row after row; may be unaligned
  /// Where elements do not lie row after row: element (i, j) is number i * row_step + j *
  /// column_step of the data. Codes have a column_step of 1, and scales that are numbered likewise,
  /// one for group_k elements; REQUIRES of them: group_n == 1, and group_k divides columns and
  /// row_step.
  std::int64_t row_step = 0;
  std::int64_t column_step = 1;
  TensorView scales;                 ///< [quant.scale_rows][quant.groups], from the first row's on
  std::span<const std::byte> zeros;  ///< likewise, where zero points are stored
  /// Reads what the above does not say: codes in another order, scales among the codes. Where it is
  /// set, `data` is what it reads mostly, and quant.code is `own`.
  RowReader reader = {};
  std::size_t reader_bytes = 0;  ///< of what it reads besides `data`
  /// It reads nothing but what it is given with the matrix: copies of the views may take their
  /// place.
  bool reads_views_alone = false;
  /// Likewise, as weights of type `held` have them; null where none hold such codes as they are.
  CodeReader code_reader = {};
  WeightType held = WeightType::f32;  ///< where there is a code_reader

  bool row_after_row() const { return row_step == 0; }

  /// REQUIRES: rows > 0, row_after_row().
  const std::byte* row(std::int64_t i) const {
    return data.data() + i * (static_cast<std::ptrdiff_t>(data.size()) / rows);
  }

  /// Its own in the file, without what lies between its elements.
  std::size_t bytes() const;

  bool is_plain() const { return quant.code == Code::element; }

  /// The type of weights that has its codes as they are; absent where none has.
  std::optional<WeightType> held_as() const;

  bool holds(WeightType type) const { return held_as() == type; }

  /// One row's codes as they are, and its scales: as quantize_row writes them. REQUIRES: holds(..).
  void read_codes(std::int64_t row, std::byte* codes, float* scales) const;

  /// Rows [first, first + count) as elements of `type`, one behind the other, at memory aligned for
  /// it: what is quantised becomes f32 by one rounded product, then `type`.
  void read_rows(std::int64_t first, std::int64_t count, DType type, std::byte* out) const;
};

/// A tensor of plain elements of shape [rows, columns].
StoredMatrix plain_matrix(const TensorView& tensor);

/// Where one expert's matrix lies among those of all in one tensor: every `step`-th of the rows
/// that the expert has there, from `first` on.
struct StackPlace {
  std::int64_t experts = 1;
  std::int64_t expert = 0;
  std::int64_t all_rows = 0;  ///< of one expert
  std::int64_t first = 0;
  std::int64_t step = 1;
  bool by_rows =
      false;  ///< the tensor is [experts, all_rows, columns], not [experts, columns, all_rows]
};

/// Of `rows` rows, in a tensor of the shape that `place` says.
StoredMatrix stacked_matrix(const TensorView& stack, std::int64_t rows, const StackPlace& place);

}  // namespace ferry
