// Packing of weights into panels, once at load.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include "ferry/core/types.h"
#include "ferry/kernels/kernels.h"
#include "ferry/kernels/packed_matrix.h"

namespace ferry {

namespace {

constexpr std::int64_t kChunk = 256;  // k at a time: 16 columns of f32 are 16 KB

/// One panel's chunk: 16 columns of up to kChunk elements of the packed type, column after column.
struct Chunk {
  alignas(64) std::byte data[kPanelColumns * kChunk * 4];
};

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

/// Writes columns side by side: in units of one f32, or of one pair of bf16.
void write_chunk(const Chunk& chunk, std::int64_t units, std::int64_t chunk_units, std::byte* out) {
  for (std::int64_t u = 0; u < units; ++u)
    for (std::int64_t c = 0; c < kPanelColumns; ++c)
      std::memcpy(out + (u * kPanelColumns + c) * 4, chunk.data + (c * chunk_units + u) * 4, 4);
}

void pack_plain(const PackArgs& args) {
  const bool pairs = args.type == WeightType::bf16;
  const std::int64_t k = pairs ? round_up(args.k, kBf16KBlock) : args.k;
  const std::int64_t per_unit = pairs ? 2 : 1;
  const auto panel_bytes =
      static_cast<std::int64_t>(PackedMatrix::packed_panel_bytes(args.type, args.k));
  Chunk chunk;
  for (std::int64_t panel = 0; panel < ceil_div(args.n, kPanelColumns); ++panel) {
    std::byte* out = args.out + panel * args.panel_step * panel_bytes;
    for (std::int64_t first = 0; first < k; first += kChunk) {
      const std::int64_t count = std::min(kChunk, k - first);
      read_chunk(args, panel, first, count, chunk);
      write_chunk(
          chunk, count / per_unit, kChunk / per_unit, out + first / per_unit * kPanelColumns * 4);
    }
  }
}

/// One column's codes into its panel, which holds the codes of zeros.
void put_int8(const std::byte* codes, std::int64_t k, std::byte* out) {
  constexpr std::uint32_t kSignBits = 0x80808080U;  // flipping them adds 128 to each
  for (std::int64_t i = 0; i < k; i += 4, out += std::ptrdiff_t{4} * kPanelColumns) {
    std::uint32_t four = 0;
    std::memcpy(&four, codes + i, static_cast<std::size_t>(std::min<std::int64_t>(4, k - i)));
    four ^= kSignBits;
    std::memcpy(out, &four, sizeof four);
  }
}

/// Eight k are four bytes of the row, 0|1 2|3 4|5 6|7, and of the panel, 0|4 1|5 2|6 3|7.
void put_int4(const std::byte* codes, std::int64_t k, std::byte* out) {
  constexpr auto kLower = std::byte{0x0f};
  constexpr auto kUpper = std::byte{0xf0};
  const std::int64_t bytes = ceil_div(k, 2);
  for (std::int64_t i = 0; i < bytes; i += 4, out += std::ptrdiff_t{4} * kPanelColumns) {
    std::byte in[4] = {std::byte{0x88}, std::byte{0x88}, std::byte{0x88}, std::byte{0x88}};
    std::memcpy(in, codes + i, static_cast<std::size_t>(std::min<std::int64_t>(4, bytes - i)));
    out[0] = (in[0] & kLower) | in[2] << 4;
    out[1] = in[0] >> 4 | (in[2] & kUpper);
    out[2] = (in[1] & kLower) | in[3] << 4;
    out[3] = in[1] >> 4 | (in[3] & kUpper);
  }
}

void put_codes(WeightType type,
               const std::byte* codes,
               std::int64_t k,
               std::int64_t column,
               std::byte* panel) {
  if (type == WeightType::int8) {
    put_int8(codes, k, panel + 4 * column);
  } else if (type == WeightType::int4) {
    put_int4(codes, k, panel + 4 * column);
  } else {
    for (std::int64_t i = 0; i < k; ++i) panel[i * kPanelColumns + column] = codes[i];
  }
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

std::byte code_of_zeros(WeightType type) {
  if (type == WeightType::int8) return std::byte{0x80};
  return type == WeightType::int4 ? std::byte{0x88} : std::byte{0};
}

void pack_codes(const PackArgs& args) {
  const std::int64_t groups = weight_groups(args.type, args.k);
  const auto panel_bytes =
      static_cast<std::int64_t>(PackedMatrix::packed_panel_bytes(args.type, args.k));
  const std::int64_t scales_at = panel_bytes - groups * kPanelColumns * 4;
  const float factor = args.type == WeightType::fp8 ? 256.0F : 1.0F;
  for (std::int64_t panel = 0; panel < ceil_div(args.n, kPanelColumns); ++panel) {
    std::byte* out = args.out + panel * args.panel_step * panel_bytes;
    std::memset(
        out, std::to_integer<int>(code_of_zeros(args.type)), static_cast<std::size_t>(scales_at));
    auto* scales = reinterpret_cast<float*>(out + scales_at);
    std::fill_n(scales, groups * kPanelColumns, 0.0F);
    for (std::int64_t c = 0; c < kPanelColumns && panel * kPanelColumns + c < args.n; ++c) {
      const std::int64_t row = panel * kPanelColumns + c;
      const std::byte* codes = args.source + row * code_row_bytes(args.type, args.k);
      put_codes(args.type, codes, args.k, c, out);
      for (std::int64_t g = 0; g < groups; ++g)
        scales[g * kPanelColumns + c] = args.scales[row / args.scale_rows * groups + g] * factor;
      if (args.type == WeightType::fp8) move_nan_to_scales(codes, args.k, scales + c);
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

/// One group of a column into its panel, whose codes there are zero; `out` is the group's first. An
/// even k and the odd one behind it share a byte in the row as in the panel.
void put_mxfp4_group(const std::byte* codes,
                     std::int64_t count,
                     std::uint8_t exponent,
                     std::int64_t column,
                     std::byte* out) {
  constexpr auto kLower = std::byte{0x0f};
  const bool has_next_scale = exponent == 0 || exponent == 255;
  out += column / 4 % 2 * 16 + column / 8 * 4 + column % 4;
  for (std::int64_t i = 0; i < count; i += 2) {
    std::byte both = codes[i / 2];
    if (i + 1 == count) both &= kLower;
    if (has_next_scale) both = codes_of_next_scale(both, exponent);
    out[i / 4 * 32 + i % 4 * 4] = both;
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
                        out + g * kGroupBytes);
        scales[g * kPanelColumns + c] = std::byte{std::clamp<std::uint8_t>(exponent, 1, 254)};
      }
    }
  }
}

}  // namespace

void pack_matrix(const PackArgs& args) {
  if (args.type == WeightType::mxfp4)
    pack_mxfp4(args);
  else if (is_ggml(args.type))
    pack_ggml(args);
  else if (is_quantized(args.type))
    pack_codes(args);
  else
    pack_plain(args);
}

}  // namespace ferry
