// What codes of a quantised matrix stand for: element = (code - zero point) * scale, where groups
// of elements share a scale and a zero point.
#pragma once

#include <cstdint>
#include <optional>

#include "ferry/core/types.h"
#include "ferry/kernels/packed_matrix.h"

namespace ferry {

enum class Code : std::uint8_t {
  element,  ///< none: plain elements
  e4m3,     ///< a byte: a float of 4 bits of exponent and 3 of mantissa (e4m3fn)
  int8,     ///< a byte, two's complement
  uint4,    ///< two in a byte, the earlier in the lower half
  e2m1,     ///< likewise: floats of 2 bits of exponent and 1 of mantissa
  own,      ///< in a form that only the matrix's reader knows
};

enum class ScaleKind : std::uint8_t {
  number,        ///< F32, BF16 or F16
  power_of_two,  ///< a byte s for 2^(s - 127) (E8M0)
};

enum class ZeroPoint : std::uint8_t {
  none,
  middle,  ///< of the codes: 8 of uint4
  stored,  ///< a byte for each scale, signed as the codes are
};

/// Plain data; equal ones mean the same numbers.
struct QuantSpec {
  Code code = Code::element;
  std::int64_t group_k = 0;  ///< columns that share a scale; 0: the whole row
  std::int64_t group_n = 1;  ///< rows that do
  ScaleKind scale = ScaleKind::number;
  ZeroPoint zero = ZeroPoint::none;

  bool operator==(const QuantSpec&) const = default;

  /// Scales beside each other: of one row, those at the end of fewer columns.
  constexpr std::int64_t groups(std::int64_t columns) const {
    return group_k == 0 ? 1 : ceil_div(columns, group_k);
  }

  /// Rows of scales.
  constexpr std::int64_t scale_rows(std::int64_t rows) const { return ceil_div(rows, group_n); }

  /// REQUIRES: code is neither element nor own.
  constexpr int codes_a_byte() const { return code == Code::uint4 || code == Code::e2m1 ? 2 : 1; }

  /// A row begins with a byte of its own. REQUIRES: as above.
  constexpr std::int64_t row_bytes(std::int64_t columns) const {
    return ceil_div(columns, codes_a_byte());
  }
};

/// What codes of weights held as `type` stand for. REQUIRES: is_quantized(type).
constexpr QuantSpec quant_spec(WeightType type) {
  if (type == WeightType::fp8) return {Code::e4m3, kFp8Block, kFp8Block};
  if (type == WeightType::int8) return {.code = Code::int8};
  if (type == WeightType::mxfp4)
    return {.code = Code::e2m1, .group_k = kMxfp4Group, .scale = ScaleKind::power_of_two};
  return {.code = Code::uint4, .group_k = kInt4Group, .zero = ZeroPoint::middle};
}

/// The type of weights that hold such codes and scales as they are; absent where none does. fp8's
/// scales may be powers of two.
constexpr std::optional<WeightType> weight_type_of(QuantSpec spec) {
  if (spec.code == Code::e4m3) spec.scale = ScaleKind::number;
  for (const WeightType type :
       {WeightType::fp8, WeightType::int8, WeightType::int4, WeightType::mxfp4})
    if (spec == quant_spec(type)) return type;
  return std::nullopt;
}

}  // namespace ferry
