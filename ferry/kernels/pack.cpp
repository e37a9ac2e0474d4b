// Packing of weights into panels, once at load.
#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "ferry/core/types.h"
#include "ferry/kernels/kernels.h"
#include "ferry/kernels/packed_matrix.h"

namespace ferry {

namespace {

constexpr std::int64_t kChunk = 256;  // k at a time: 16 columns of f32 are 16 KB
constexpr std::int64_t kUnitRowBytes = std::int64_t{kPanelColumns} * 4;

/// One panel's chunk: 16 columns of up to kChunk elements of the packed type, column after column.
struct Chunk {
  alignas(64) std::byte data[kPanelColumns * kChunk * 4];
};

/// Four neighbouring units of a column. Written for whatever vectors the compiler's target has.
using Units = std::uint32_t __attribute__((vector_size(16)));

Units load_units(const std::byte* from) {
  Units units;
  std::memcpy(&units, from, sizeof units);
  return units;
}

/// Four units of four columns, the other way round: `out` is the first one's place.
template <class Change>
void put_four_by_four(const std::byte* const* columns,
                      std::int64_t first,
                      Change change,
                      std::byte* out) {
  const auto at = [&](int c) { return change(load_units(columns[c] + 4 * first)); };
  const Units a = at(0);
  const Units b = at(1);
  const Units c = at(2);
  const Units d = at(3);
  const Units ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
  const Units ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const Units cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5);
  const Units cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  const auto put = [&](int unit, Units row) {
    std::memcpy(out + std::ptrdiff_t{unit} * kUnitRowBytes, &row, sizeof row);
  };
  put(0, __builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5));
  put(1, __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7));
  put(2, __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5));
  put(3, __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7));
}

/// Writes 16 columns side by side, in units of four bytes: one f32, a pair of bf16, four or eight
/// codes. `change` makes of four units what a panel has. A line of each column at a time: columns
/// are often a multiple of 4 KiB apart, and then few of their lines fit in the first cache
/// together.
template <class Change>
void put_units(const std::byte* const* columns, std::int64_t units, Change change, std::byte* out) {
  constexpr std::int64_t kLineUnits = 16;
  std::int64_t first = 0;
  for (; first + kLineUnits <= units; first += kLineUnits)
    for (std::int64_t c = 0; c < kPanelColumns; c += 4)
      for (std::int64_t u = first; u < first + kLineUnits; u += 4)
        put_four_by_four(columns + c, u, change, out + u * kUnitRowBytes + c * 4);
  for (; first < units; ++first) {
    for (std::int64_t c = 0; c < kPanelColumns; ++c) {
      std::uint32_t unit = 0;
      std::memcpy(&unit, columns[c] + 4 * first, sizeof unit);
      const Units four = change(Units{unit, 0, 0, 0});
      unit = four[0];
      std::memcpy(out + first * kUnitRowBytes + c * 4, &unit, sizeof unit);
    }
  }
}

Units as_they_are(Units units) { return units; }

/// Reads k elements from `first` on of the panel's columns, zeros beyond the matrix.
void read_chunk(const PackArgs& args,
                std::int64_t panel,
                std::int64_t first,
                std::int64_t count,
                Chunk& chunk) {
  const std::int64_t from_bytes = static_cast<std::int64_t>(dtype_bytes(args.source_type));
  const DType to_type = activation_type(args.type);
  const std::int64_t to_bytes = static_cast<std::int64_t>(dtype_bytes(to_type));
  for (std::int64_t c = 0; c < kPanelColumns; ++c) {
    const std::int64_t column = panel * kPanelColumns + c;
    const std::int64_t have =
        column < args.n ? std::clamp<std::int64_t>(args.k - first, 0, count) : 0;
    std::byte* to = chunk.data + c * kChunk * to_bytes;
    if (have > 0) {
      const std::byte* from = args.source + (column * args.k + first) * from_bytes;
      kernels().convert(from, args.source_type, to, to_type, have);
    }
    std::memset(to + have * to_bytes, 0, static_cast<std::size_t>((count - have) * to_bytes));
  }
}

void pack_plain(const PackArgs& args) {
  const bool pairs = args.type == WeightType::bf16;
  const DType type = activation_type(args.type);
  const auto bytes = static_cast<std::int64_t>(dtype_bytes(type));
  const std::int64_t k = pairs ? round_up(args.k, kBf16KBlock) : args.k;
  const std::int64_t per_unit = pairs ? 2 : 1;
  const auto panel_bytes =
      static_cast<std::int64_t>(PackedMatrix::packed_panel_bytes(args.type, args.k));
  Chunk chunk;
  const std::byte* columns[kPanelColumns];
  for (std::int64_t panel = 0; panel < ceil_div(args.n, kPanelColumns); ++panel) {
    std::byte* out = args.out + panel * args.panel_step * panel_bytes;
    const bool whole = k == args.k && (panel + 1) * kPanelColumns <= args.n;
    if (whole && args.source_type == type) {
      for (std::int64_t c = 0; c < kPanelColumns; ++c)
        columns[c] = args.source + (panel * kPanelColumns + c) * k * bytes;
      put_units(columns, k / per_unit, as_they_are, out);
      continue;
    }
    for (std::int64_t c = 0; c < kPanelColumns; ++c) columns[c] = chunk.data + c * kChunk * bytes;
    for (std::int64_t first = 0; first < k; first += kChunk) {
      const std::int64_t count = std::min(kChunk, k - first);
      read_chunk(args, panel, first, count, chunk);
      put_units(columns, count / per_unit, as_they_are, out + first / per_unit * kUnitRowBytes);
    }
  }
}

/// Four codes, each plus 128: flipping their signs does that.
Units int8_units(Units codes) { return codes ^ 0x80808080U; }

/// Eight k are four bytes of the row, 0|1 2|3 4|5 6|7, and of the panel, 0|4 1|5 2|6 3|7.
Units int4_units(Units codes) {
  const Units low = codes & 0x0f0f0f0fU;           // 0 2 4 6
  const Units high = (codes >> 4U) & 0x0f0f0f0fU;  // 1 3 5 7
  const Units first = (low & 0xffU) | (high & 0xffU) << 8U | (low & 0xff00U) << 8U |
                      (high & 0xff00U) << 16U;  // 0 1 2 3
  const Units last = (low >> 16U & 0xffU) | (high >> 16U & 0xffU) << 8U | (low >> 24U) << 16U |
                     (high >> 24U) << 24U;  // 4 5 6 7
  return first | last << 4U;
}

/// Codes of 16 columns, [k][16 columns].
void put_bytes(const std::byte* const* columns, std::int64_t k, std::byte* out) {
  using Bytes = std::uint8_t __attribute__((vector_size(16)));
  std::int64_t i = 0;
  for (; i + kPanelColumns <= k; i += kPanelColumns) {
    Bytes rows[kPanelColumns];
    Bytes next[kPanelColumns];
    for (int c = 0; c < kPanelColumns; ++c) std::memcpy(&rows[c], columns[c] + i, sizeof rows[c]);
    // Row c beside row c + 8, four times: each time a bit of the column becomes one of the row.
    for (int times = 0; times < 4; ++times) {
      for (int c = 0; c < kPanelColumns / 2; ++c) {
        next[2 * c] = __builtin_shufflevector(rows[c],
                                              rows[c + kPanelColumns / 2],
                                              0,
                                              16,
                                              1,
                                              17,
                                              2,
                                              18,
                                              3,
                                              19,
                                              4,
                                              20,
                                              5,
                                              21,
                                              6,
                                              22,
                                              7,
                                              23);
        next[2 * c + 1] = __builtin_shufflevector(rows[c],
                                                  rows[c + kPanelColumns / 2],
                                                  8,
                                                  24,
                                                  9,
                                                  25,
                                                  10,
                                                  26,
                                                  11,
                                                  27,
                                                  12,
                                                  28,
                                                  13,
                                                  29,
                                                  14,
                                                  30,
                                                  15,
                                                  31);
      }
      std::memcpy(rows, next, sizeof rows);
    }
    std::memcpy(out + i * kPanelColumns, rows, sizeof rows);
  }
  for (; i < k; ++i)
    for (std::int64_t c = 0; c < kPanelColumns; ++c) out[i * kPanelColumns + c] = columns[c][i];
}

/// One panel's codes, of whole units of all its columns.
void put_codes(WeightType type, const std::byte* const* columns, std::int64_t k, std::byte* out) {
  if (type == WeightType::int8)
    put_units(columns, k / 4, int8_units, out);
  else if (type == WeightType::int4)
    put_units(columns, k / 8, int4_units, out);
  else
    put_bytes(columns, k, out);
}

/// Whether any of these fp8 codes is a NaN.
bool has_nan(const std::byte* codes, std::int64_t count) {
  constexpr auto kNan = std::byte{0x7f};  // whatever the sign
  return std::any_of(codes, codes + count, [](std::byte code) { return (code & kNan) == kNan; });
}

/// A NaN among the codes of a group moves to the group's scale, where it does the same to the
/// column's results: kernels need not look for it.
void move_nan_to_scales(const std::byte* codes, std::int64_t k, float* scales) {
  for (std::int64_t first = 0; first < k; first += kFp8Block, scales += kPanelColumns)
    if (has_nan(codes + first, std::min<std::int64_t>(kFp8Block, k - first)))
      *scales = std::numeric_limits<float>::quiet_NaN();
}

/// Of a row, not of a panel.
std::byte code_of_zeros(WeightType type) {
  return type == WeightType::int4 ? std::byte{0x88} : std::byte{0};
}

/// One panel's columns where codes are, each of whole units: copies of those that end before.
class CodeColumns {
 public:
  CodeColumns(const PackArgs& args, std::int64_t padded_k)
      : args_(args),
        row_bytes_(code_row_bytes(args.type, args.k)),
        padded_bytes_(code_row_bytes(args.type, padded_k)) {}

  const std::byte* const* of(std::int64_t panel) {
    const std::int64_t first = panel * kPanelColumns;
    const bool whole = row_bytes_ == padded_bytes_ && first + kPanelColumns <= args_.n;
    if (!whole)
      copies_.assign(static_cast<std::size_t>(kPanelColumns * padded_bytes_),
                     code_of_zeros(args_.type));
    for (std::int64_t c = 0; c < kPanelColumns; ++c) {
      const std::byte* row = args_.source + (first + c) * row_bytes_;
      columns_[c] = whole ? row : copies_.data() + c * padded_bytes_;
      if (!whole && first + c < args_.n)
        std::memcpy(copies_.data() + c * padded_bytes_, row, static_cast<std::size_t>(row_bytes_));
    }
    return columns_;
  }

 private:
  const PackArgs& args_;
  const std::int64_t row_bytes_;
  const std::int64_t padded_bytes_;
  std::vector<std::byte> copies_;
  const std::byte* columns_[kPanelColumns] = {};
};

void pack_codes(const PackArgs& args) {
  const std::int64_t groups = weight_groups(args.type, args.k);
  const std::int64_t padded_k =
      round_up(args.k, args.type == WeightType::fp8 ? kBf16KBlock : kIntKBlock);
  const auto panel_bytes =
      static_cast<std::int64_t>(PackedMatrix::packed_panel_bytes(args.type, args.k));
  const std::int64_t scales_at = panel_bytes - groups * kPanelColumns * 4;
  const float factor = args.type == WeightType::fp8 ? 256.0F : 1.0F;
  CodeColumns columns(args, padded_k);
  for (std::int64_t panel = 0; panel < ceil_div(args.n, kPanelColumns); ++panel) {
    std::byte* out = args.out + panel * args.panel_step * panel_bytes;
    const std::byte* const* codes = columns.of(panel);
    put_codes(args.type, codes, padded_k, out);
    auto* scales = reinterpret_cast<float*>(out + scales_at);
    std::fill_n(scales, groups * kPanelColumns, 0.0F);
    for (std::int64_t c = 0; c < kPanelColumns && panel * kPanelColumns + c < args.n; ++c) {
      const std::int64_t row = panel * kPanelColumns + c;
      for (std::int64_t g = 0; g < groups; ++g)
        scales[g * kPanelColumns + c] = args.scales[row / args.scale_rows * groups + g] * factor;
      if (args.type == WeightType::fp8) move_nan_to_scales(codes[c], args.k, scales + c);
    }
  }
}

/// Codes that stand for the same numbers with a scale that f32 has as a normal number: of 2^-127
/// with 2^-126 (what is denormal becomes zero, as threads would flush it), of 2^128 with 2^127
/// (what is beyond f32 stays so).
std::byte code_of_next_scale(std::byte code, std::uint8_t exponent) {
  constexpr std::uint8_t kOfLeast[8] = {0, 0, 0, 0, 2, 3, 4, 5};
  constexpr std::uint8_t kOfGreatest[8] = {0, 2, 4, 4, 4, 4, 4, 4};
  constexpr auto kSign = std::byte{8};
  const auto magnitude = std::to_integer<std::size_t>(code & std::byte{7});
  if (exponent == 0) return std::byte{kOfLeast[magnitude]} | (code & kSign);
  if (exponent == 255) return std::byte{kOfGreatest[magnitude]} | (code & kSign);
  return code;
}

/// Both codes of a byte.
std::byte codes_of_next_scale(std::byte both, std::uint8_t exponent) {
  constexpr auto kLower = std::byte{0x0f};
  return code_of_next_scale(both & kLower, exponent) | code_of_next_scale(both >> 4, exponent) << 4;
}

/// Code i of a column's four bits into lines of four k side by side, which are zero so far.
void put_in_fours(std::byte code, std::int64_t i, std::int64_t column, std::byte* lines) {
  const std::int64_t at = i / 8 * (4 * kPanelColumns) + 4 * column + i % 4;
  lines[at] |= i % 8 < 4 ? code : code << 4;
}

/// One group of a column into its panel, whose codes there are zero; `out` is the group's first. An
/// even k and the odd one behind it share a byte in the row, and in the panel unless codes lie in
/// fours.
void put_mxfp4_group(const std::byte* codes,
                     std::int64_t count,
                     std::uint8_t exponent,
                     std::int64_t column,
                     bool fours,
                     std::byte* out) {
  constexpr auto kLower = std::byte{0x0f};
  const bool has_next_scale = exponent == 0 || exponent == 255;
  const std::int64_t place = column / 4 % 2 * 16 + column / 8 * 4 + column % 4;
  for (std::int64_t i = 0; i < count; i += 2) {
    std::byte both = codes[i / 2];
    if (i + 1 == count) both &= kLower;
    if (has_next_scale) both = codes_of_next_scale(both, exponent);
    if (fours) {
      put_in_fours(both & kLower, i, column, out);
      put_in_fours(both >> 4, i + 1, column, out);
    } else {
      out[i / 4 * 32 + i % 4 * 4 + place] = both;
    }
  }
}

void pack_mxfp4(const PackArgs& args) {
  constexpr std::int64_t kGroupBytes = kMxfp4Group / 2 * kPanelColumns;
  const std::int64_t groups = weight_groups(args.type, args.k);
  const std::size_t panel_bytes = PackedMatrix::packed_panel_bytes(args.type, args.k);
  for (std::int64_t panel = 0; panel < ceil_div(args.n, kPanelColumns); ++panel) {
    std::byte* out = args.out + panel * args.panel_step * static_cast<std::int64_t>(panel_bytes);
    std::memset(out, 0, panel_bytes);
    std::byte* scales = out + groups * kGroupBytes;
    for (std::int64_t c = 0; c < kPanelColumns && panel * kPanelColumns + c < args.n; ++c) {
      const std::int64_t row = panel * kPanelColumns + c;
      const std::byte* codes = args.source + row * code_row_bytes(args.type, args.k);
      for (std::int64_t g = 0; g < groups; ++g) {
        const std::uint8_t exponent =
            power_exponent(args.scales[row / args.scale_rows * groups + g]);
        put_mxfp4_group(codes + g * (kMxfp4Group / 2),
                        std::min<std::int64_t>(kMxfp4Group, args.k - g * kMxfp4Group),
                        exponent,
                        c,
                        args.type == WeightType::mxfp4_int8,
                        out + g * kGroupBytes);
        scales[g * kPanelColumns + c] = std::byte{std::clamp<std::uint8_t>(exponent, 1, 254)};
      }
    }
  }
}

}  // namespace

void pack_matrix(const PackArgs& args) {
  if (code_type(args.type) == WeightType::mxfp4)
    pack_mxfp4(args);
  else if (is_ggml(args.type))
    pack_ggml(args);
  else if (is_quantized(args.type))
    pack_codes(args);
  else
    pack_plain(args);
}

void unpack_rows(const PackedMatrix& matrix, std::int64_t panel_step, std::byte* rows) {
  const bool pairs = matrix.type == WeightType::bf16;
  const std::int64_t unit_k = pairs ? 2 : 1;  // numbers of a column that lie side by side
  const std::int64_t bytes = pairs ? 2 : 1;
  const auto step_bytes = panel_step * static_cast<std::int64_t>(matrix.panel_bytes());
  for (std::int64_t column = 0; column < matrix.n; ++column) {
    const std::byte* panel = matrix.data + column / kPanelColumns * step_bytes;
    for (std::int64_t k = 0; k < matrix.k; k += unit_k) {
      const std::int64_t unit = k / unit_k * kPanelColumns + column % kPanelColumns;
      std::memcpy(rows + (column * matrix.k + k) * bytes,
                  panel + unit * unit_k * bytes,
                  static_cast<std::size_t>(std::min(unit_k, matrix.k - k) * bytes));
    }
  }
}

bool unpack_block_scales(const PackedMatrix& matrix, std::int64_t panel_step, float* scales) {
  const std::int64_t groups = weight_groups(WeightType::fp8, matrix.k);
  const auto panel_bytes = static_cast<std::int64_t>(matrix.panel_bytes());
  const std::int64_t scales_at = panel_bytes - groups * kPanelColumns * 4;
  for (std::int64_t column = 0; column < matrix.n; ++column) {
    const auto* of_panel = reinterpret_cast<const float*>(
        matrix.data + column / kPanelColumns * panel_step * panel_bytes + scales_at);
    for (std::int64_t g = 0; g < groups; ++g) {
      const float scale = of_panel[g * kPanelColumns + column % kPanelColumns] / 256.0F;
      float& block = scales[column / kFp8Block * groups + g];
      if (column % kFp8Block == 0)
        block = scale;
      else if (std::bit_cast<std::uint32_t>(block) != std::bit_cast<std::uint32_t>(scale))
        return false;
    }
  }
  return true;
}

}  // namespace ferry
