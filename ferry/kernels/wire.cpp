#include "ferry/wire.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <string>

#include "ferry/core/error.h"
#include "ferry/core/types.h"

namespace ferry {

namespace {

struct WireRow {
  WireType type;
  std::string_view name;
  std::optional<DType> element;
  std::size_t scale_bytes = 0;  ///< 0: no scales
  bool scale_per_row = false;
};

constexpr std::array kRows = {
    WireRow{WireType::f32, "f32", DType::f32},
    WireRow{WireType::bf16, "bf16", DType::bf16},
    WireRow{WireType::fp8, "fp8", std::nullopt, 4},
    WireRow{WireType::fp8_pow2, "fp8_pow2", std::nullopt, 1},
    WireRow{WireType::int8, "int8", std::nullopt, 4, true},
    WireRow{WireType::int8_block, "int8_block", std::nullopt, 4},
};

const WireRow& row_of(WireType type) { return kRows.at(static_cast<std::size_t>(type)); }

}  // namespace

std::span<const WireType> wire_types() {
  static constexpr auto kTypes = [] {
    std::array<WireType, kRows.size()> all{};
    for (std::size_t i = 0; i < all.size(); ++i) all.at(i) = kRows.at(i).type;
    return all;
  }();
  return kTypes;
}

std::string_view wire_type_name(WireType type) { return row_of(type).name; }

WireType parse_wire_type(std::string_view name, std::string_view option) {
  std::string known;
  for (const WireRow& row : kRows) {
    if (row.name == name) return row.type;
    known += known.empty() ? "" : ", ";
    known += row.name;
  }
  fail<ConfigError>("{} {}: no such wire type; known: {}", option, name, known);
}

bool is_quantized(WireType type) { return !row_of(type).element; }

WireType wire_type(DType type) {
  for (const WireRow& row : kRows)
    if (row.element == type) return row.type;
  fail<ConfigError>("no wire carries {} elements: choose f32 or bf16", dtype_name(type));
}

/// With u = 2^-24, scale s = amax / greatest code, code c = x * (1 / s), value c * s, each rounded:
/// s is amax / greatest within u of itself; before its own rounding c is x / s within 2 u (of 1 / s
/// and of the product); c * s adds u. So to first order an error is at most
///   h s (1 + u) + 3 u abs(x)    where h = abs(rounding of c to a code).
/// int8: h = 1/2 and abs(x) <= amax: amax / 254 (1 + 2 u) + 3 u amax = amax / 254 (1 + 764 u), and
/// 764 u < 2^-14. fp8: h is abs(c) / 16, or 1 / 1024 where abs(c) < 1 / 64: a sixteenth of abs(x),
/// or s / 1024, times 1 + 51 u, and 51 u < 2^-18.
double wire_error_bound(WireType type, double x, double greatest) {
  const auto fp8 = [&](double scale) {
    return std::max(std::abs(x) / 16, scale / 1024) * (1 + 0x1p-18);
  };
  switch (type) {
    case WireType::f32:
      return 0;
    case WireType::bf16:
      return std::abs(x) / 256;
    case WireType::fp8:
      return fp8(greatest / 448);
    case WireType::fp8_pow2:
      return fp8(2 * greatest / 448);
    case WireType::int8:
    case WireType::int8_block:
      return greatest / 254 * (1 + 0x1p-14);
  }
  return 0;
}

std::optional<DType> element_type(WireType type) { return row_of(type).element; }

std::size_t wire_row_bytes(WireType type, std::int64_t n) {
  constexpr std::int64_t kRowUnit = 16;
  const WireRow& row = row_of(type);
  if (row.element) return static_cast<std::size_t>(n) * dtype_bytes(*row.element);
  const WireScales scales = wire_scales(type, n);
  const std::size_t used = scales.offset + static_cast<std::size_t>(scales.count) * scales.bytes;
  return static_cast<std::size_t>(round_up(static_cast<std::int64_t>(used), kRowUnit));
}

WireScales wire_scales(WireType type, std::int64_t n) {
  const WireRow& row = row_of(type);
  if (row.element) return {};
  const std::int64_t values = row.scale_per_row ? std::max<std::int64_t>(n, 1) : kWireBlock;
  return {.offset = static_cast<std::size_t>(round_up(n, 4)),
          .count = ceil_div(n, values),
          .values = values,
          .bytes = row.scale_bytes};
}

}  // namespace ferry
