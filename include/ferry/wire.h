// What rows look like while they travel: the types of dispatch's and combine's wires, and where a
// quantised row keeps its scales. docs/numerics.md has the formats' error bounds and sources; the
// functions that write and read rows are `encode`, `decode` and `weighted_sum` in kernels.h.
//
// A row of n values:
//   f32, bf16   n elements and nothing else.
//   quantised   n bytes, one a value; zeros up to a multiple of 4; the scales, as many as
//               wire_scales() says; zeros up to a multiple of 16. A value is byte * scale.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "ferry/export.h"
#include "ferry/types.h"

namespace ferry {

enum class WireType : std::uint8_t {
  f32,
  bf16,
  fp8,         ///< e4m3fn, an f32 scale per 128 values: greatest magnitude / 448
  fp8_pow2,    ///< e4m3fn, a power of two per 128 values as UE8M0: the smallest not below that
  int8,        ///< -127..127, one f32 scale for the row: greatest magnitude / 127
  int8_block,  ///< -127..127, an f32 scale per 128 values: greatest magnitude / 127
};

inline constexpr std::int64_t kWireBlock = 128;  // values that share a scale, where blocks do

/// All of them, in the order of the enumeration.
FERRY_API std::span<const WireType> wire_types();

/// The name that flags and JSON use: the enumerator's.
FERRY_API std::string_view wire_type_name(WireType type);

/// The type of that name. Throws ConfigError that names `option` and lists the known ones.
FERRY_API WireType parse_wire_type(std::string_view name, std::string_view option);

/// Whether values are rounded to a byte and a shared scale.
FERRY_API bool is_quantized(WireType type);

/// The wire that carries elements of `type` as they are. REQUIRES: f32 or bf16.
FERRY_API WireType wire_type(DType type);

/// The way back: none for quantised wires, whose rows are no plain elements.
FERRY_API std::optional<DType> element_type(WireType type);

/// Bytes of a row of n >= 0 values.
FERRY_API std::size_t wire_row_bytes(WireType type, std::int64_t n);

/// How far a value x may be from what arrives for it, where `greatest` is the greatest magnitude
/// among those that share its scale (docs/numerics.md; between 2^-110 and 2^127).
FERRY_API double wire_error_bound(WireType type, double x, double greatest);

/// Where the scales of a quantised row of n values lie; count = 0 for f32 and bf16.
struct WireScales {
  std::size_t offset = 0;   ///< from the row's start, in bytes; a multiple of 4
  std::int64_t count = 0;   ///< scales of the row
  std::int64_t values = 0;  ///< values that share one; the last may have fewer
  std::size_t bytes = 0;    ///< of one: 4 = f32; 1 = UE8M0, e stands for 2^(e - 127), 255 for NaN
};

FERRY_API WireScales wire_scales(WireType type, std::int64_t n);

}  // namespace ferry
