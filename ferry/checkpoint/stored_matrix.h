// A matrix as it lies in a checkpoint's files: plain elements, or bytes that share scales.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "ferry/checkpoint/safetensors.h"
#include "ferry/core/types.h"
#include "ferry/kernels/packed_matrix.h"

namespace ferry {

/// Borrowed from the files. Threads: safe for several.
struct StoredMatrix {
  enum class Format : std::uint8_t {
    plain,  ///< elements of `dtype`
    fp8,    ///< e4m3fn; element = byte * scale of its block of kFp8BlockRows x kWireBlock
    int8,   ///< element = signed byte * scale of its row
    int4,   ///< two in a byte, lower half first; element = (half - 8) * scale of its 64 in the row
    mxfp4,  ///< two in a byte, lower half first; element = e2m1 * 2^(scale's byte - 127), of its 32
  };
  static constexpr std::int64_t kFp8BlockRows = 128;
  static constexpr std::int64_t kMxfp4Group = 32;

  Format format = Format::plain;
  DType dtype = DType::f32;  ///< of plain elements
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::span<const std::byte> data;  ///< row after row; may be unaligned
  /// Where elements do not lie row after row: element (i, j) is number i * row_step + j *
  /// column_step of the data. Of plain ones and of mxfp4, whose scales are numbered likewise, one
  /// for 32 elements.
  std::int64_t row_step = 0;
  std::int64_t column_step = 1;
  TensorView scales;  ///< fp8: [rows / 128, columns / 128], int8: [rows, 1], int4: [rows,
                      ///< columns / 64], rounded up; mxfp4: bytes, from the first element's on

  bool row_after_row() const { return row_step == 0; }

  /// REQUIRES: rows > 0, row_after_row().
  const std::byte* row(std::int64_t i) const {
    return data.data() + i * (static_cast<std::ptrdiff_t>(data.size()) / rows);
  }

  /// Its own in the file, without what lies between its elements.
  std::size_t bytes() const;

  bool is_plain() const { return format == Format::plain; }

  /// Whether it has the codes that weights of that type are held as.
  bool holds(WeightType type) const;

  /// One row's codes as they are, and its scales: as quantize_row writes them. REQUIRES: holds(..).
  void read_codes(std::int64_t row, std::byte* codes, float* scales) const;

  /// Rows [first, first + count) as elements of `type`, one behind the other: what is quantised
  /// becomes f32 by one rounded product, then `type`.
  void read_rows(std::int64_t first, std::int64_t count, DType type, std::byte* out) const;
};

/// A tensor of plain elements of shape [rows, columns].
StoredMatrix plain_matrix(const TensorView& tensor);

/// One expert's matrix among those of all in one tensor: of all rows that the expert has there,
/// `rows` from `first` on, `step` apart.
struct StackPlace {
  std::int64_t expert = 0;
  std::int64_t first = 0;
  std::int64_t step = 1;
  std::int64_t rows = 0;
};

/// In a tensor [experts, columns, all rows], where matrices lie the other way round.
StoredMatrix stacked_matrix(const TensorView& stack, const StackPlace& place);

/// In a tensor of mxfp4 [experts, all rows, columns], 2 elements a byte, with its scales, a byte
/// for 32 elements. REQUIRES: columns % 32 == 0.
StoredMatrix stacked_mxfp4_matrix(std::span<const std::byte> codes,
                                  std::span<const std::byte> scales,
                                  std::int64_t experts,
                                  std::int64_t columns,
                                  const StackPlace& place);

}  // namespace ferry
