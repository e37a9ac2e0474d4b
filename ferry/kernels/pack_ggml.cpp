// Packing of ggml's blocks, as GGUF files have them, into panels: the same codes in an order that
// kernels read in one go, and the same scales, of which those of six bits get a byte.
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "ferry/core/types.h"
#include "ferry/kernels/packed_matrix.h"

namespace ferry {

namespace {

constexpr std::int64_t kHalfRow = 2 * kPanelColumns;

/// One block of a row.
struct Block {
  std::array<std::uint8_t, kGgmlSuper> codes;  // as many as there are
  std::array<std::uint8_t, 16> scales;         // of groups
  std::array<std::uint8_t, 8> leasts;          // likewise
  std::uint16_t scale = 0;                     // f16
  std::uint16_t least = 0;
};

/// How codes lie in a panel: units of `k`, pairs first and then what more bits there are.
struct CodeUnit {
  std::int64_t k = 2;
  std::int64_t bytes = kPanelColumns;
  int more_bits = 0;
};

CodeUnit code_unit(WeightType type) {
  if (type == WeightType::q5_k) return {8, 5 * std::int64_t{kPanelColumns}, 1};
  if (type == WeightType::q6_k) return {4, 3 * std::int64_t{kPanelColumns}, 2};
  return {};
}

std::uint8_t byte_at(const std::byte* bytes, std::int64_t i) {
  return std::to_integer<std::uint8_t>(bytes[i]);
}

/// An infinite scale becomes a NaN: so all that it has a part in is one, whatever the code.
std::uint16_t half_at(const std::byte* bytes) {
  constexpr std::uint16_t kInfinity = 0x7c00;
  constexpr std::uint16_t kNan = 0x7e00;
  std::uint16_t half = 0;
  std::memcpy(&half, bytes, sizeof half);
  return (half & kInfinity) == kInfinity ? kNan : half;
}

std::uint8_t low(std::uint8_t byte) { return byte & 15; }

std::uint8_t high(std::uint8_t byte) { return byte >> 4; }

/// 32 codes: the lower halves of 16 bytes, then the upper ones.
void read_halves(const std::byte* from, Block& block) {
  for (std::size_t i = 0; i < kGgmlGroup / 2; ++i) {
    const std::uint8_t both = byte_at(from, static_cast<std::int64_t>(i));
    block.codes[i] = low(both);
    block.codes[i + kGgmlGroup / 2] = high(both);
  }
}

/// Eight scales and eight leasts of six bits each in twelve bytes.
void read_six_bits(const std::byte* from, Block& block) {
  for (std::size_t g = 0; g < 8; ++g) {
    const auto at = [&](std::size_t i) { return byte_at(from, static_cast<std::int64_t>(i)); };
    if (g < 4) {
      block.scales[g] = at(g) & 63;
      block.leasts[g] = at(g + 4) & 63;
      continue;
    }
    block.scales[g] = static_cast<std::uint8_t>(low(at(g + 4)) | at(g - 4) >> 6 << 4);
    block.leasts[g] = static_cast<std::uint8_t>(high(at(g + 4)) | at(g) >> 6 << 4);
  }
}

/// q4_k and q5_k, whose fifth bits lie apart: 32 bytes, of group g in bit g.
void read_k(const std::byte* from, bool fifth, Block& block) {
  constexpr std::int64_t kHead = 4 + 12;
  block.scale = half_at(from);
  block.least = half_at(from + 2);
  read_six_bits(from + 4, block);
  const std::byte* fifths = from + kHead;
  const std::byte* halves = fifth ? fifths + kGgmlGroup : fifths;
  for (std::int64_t i = 0; i < kGgmlSuper; ++i) {
    const std::int64_t group = i / kGgmlGroup;
    const std::int64_t in_group = i % kGgmlGroup;
    const std::uint8_t both = byte_at(halves, group / 2 * kGgmlGroup + in_group);
    std::uint8_t code = group % 2 == 0 ? low(both) : high(both);
    if (fifth) code |= static_cast<std::uint8_t>((byte_at(fifths, in_group) >> group & 1) << 4);
    block.codes[static_cast<std::size_t>(i)] = code;
  }
}

/// Halves of codes, then their upper two bits, then a scale for each 16, then that of all.
void read_q6_k(const std::byte* from, Block& block) {
  const std::byte* upper = from + kGgmlSuper / 2;
  const std::byte* scales = upper + kGgmlSuper / 4;
  for (std::int64_t i = 0; i < kGgmlSuper; ++i) {
    const std::int64_t half =
        i / 128;  // 128 codes share 64 bytes of halves and 32 of pairs of bits
    const std::int64_t in_half = i % 128;
    const std::uint8_t both = byte_at(from, half * 64 + in_half % 64);
    const int bits = byte_at(upper, half * 32 + in_half % 32) >> (in_half / 32 * 2) & 3;
    const std::uint8_t lower = in_half < 64 ? low(both) : high(both);
    block.codes[static_cast<std::size_t>(i)] = static_cast<std::uint8_t>(lower | bits << 4);
  }
  for (std::size_t g = 0; g < block.scales.size(); ++g)
    block.scales[g] = byte_at(scales, static_cast<std::int64_t>(g));
  block.scale = half_at(scales + kGgmlSuper / 16);
}

void read_block(WeightType type, const std::byte* from, Block& block) {
  constexpr std::uint16_t kSign = 0x8000;
  switch (type) {
    case WeightType::q4_k:
    case WeightType::q5_k:
      return read_k(from, type == WeightType::q5_k, block);
    case WeightType::q6_k:
      return read_q6_k(from, block);
    case WeightType::q4_1:
      block.scale = half_at(from);
      block.least = half_at(from + 2) ^ kSign;
      return read_halves(from + 4, block);
    case WeightType::q8_0:
      block.scale = half_at(from);
      std::memcpy(block.codes.data(), from + 2, kGgmlGroup);
      return;
    default:
      block.scale = half_at(from);
      return read_halves(from + 2, block);
  }
}

/// Codes of one column from `first` on.
void put_codes(WeightType type,
               const Block& block,
               std::int64_t first,
               std::int64_t column,
               std::byte* panel) {
  const std::int64_t k = ggml_block(type).k;
  if (type == WeightType::q8_0) {
    for (std::int64_t i = 0; i < k; ++i)
      panel[(first + i) * kPanelColumns + column] =
          static_cast<std::byte>(block.codes[static_cast<std::size_t>(i)]);
    return;
  }
  const CodeUnit unit = code_unit(type);
  for (std::int64_t i = 0; i < k; i += unit.k) {
    std::byte* out = panel + (first + i) / unit.k * unit.bytes + column;
    const std::uint8_t* codes = block.codes.data() + i;
    unsigned more = 0;
    for (std::int64_t j = 0; j < unit.k; j += 2, out += kPanelColumns) {
      *out = static_cast<std::byte>(low(codes[j]) | low(codes[j + 1]) << 4);
      more |= unsigned{high(codes[j])} << (j * unit.more_bits) | unsigned{high(codes[j + 1])}
                                                                     << ((j + 1) * unit.more_bits);
    }
    if (unit.more_bits > 0) *out = static_cast<std::byte>(more);
  }
}

/// Lines of 64 bytes in which four k of a column lie side by side, those of four bits in eights;
/// the bits above four in a line behind some of these.
struct LineUnit {
  std::int64_t k = 8;
  int more_bits = 0;

  std::int64_t bytes() const { return (k / 8 + (more_bits > 0 ? 1 : 0)) * kLineBytes; }

  static constexpr std::int64_t kLineBytes = std::int64_t{4} * kPanelColumns;
};

LineUnit line_unit(WeightType type) {
  if (type == WeightType::q5_k) return {32, 1};
  if (type == WeightType::q6_k) return {16, 2};
  return {};
}

/// As put_codes, for rows of bytes. The panel's codes are zero before.
void put_lines(WeightType type,
               const Block& block,
               std::int64_t first,
               std::int64_t column,
               std::byte* panel) {
  constexpr std::int64_t kLineBytes = LineUnit::kLineBytes;
  const std::int64_t k = ggml_block(type).k;
  const LineUnit unit = line_unit(type);
  for (std::int64_t i = 0; i < k; ++i) {
    const std::uint8_t code = block.codes[static_cast<std::size_t>(i)];
    const std::int64_t in_line = 4 * column + i % 4;
    if (type == WeightType::q8_0) {
      panel[(first + i) / 4 * kLineBytes + in_line] = static_cast<std::byte>(code ^ 0x80U);
      continue;
    }
    std::byte* own = panel + (first + i) / unit.k * unit.bytes() + in_line;
    const std::int64_t in_unit = i % unit.k;
    own[in_unit / 8 * kLineBytes] |= static_cast<std::byte>(low(code) << (i % 8 < 4 ? 0 : 4));
    if (unit.more_bits == 0) continue;
    own[unit.k / 8 * kLineBytes] |=
        static_cast<std::byte>(high(code) << (in_unit / 4 * unit.more_bits));
  }
}

void put_half(std::uint16_t half, std::int64_t column, std::byte* row) {
  std::memcpy(row + 2 * column, &half, sizeof half);
}

/// Scales of one column; `out`: those of block `number` of all columns.
void put_scales(WeightType type, const Block& block, std::int64_t column, std::byte* out) {
  put_half(block.scale, column, out);
  out += kHalfRow;
  const bool leasts = type == WeightType::q4_k || type == WeightType::q5_k;
  if (leasts || type == WeightType::q4_1) {
    put_half(block.least, column, out);
    out += kHalfRow;
  }
  if (!leasts && type != WeightType::q6_k) return;
  const std::size_t groups = leasts ? block.leasts.size() : block.scales.size();
  for (std::size_t g = 0; g < groups; ++g, out += kPanelColumns)
    out[column] = static_cast<std::byte>(block.scales[g]);
  for (std::size_t g = 0; leasts && g < groups; ++g, out += kPanelColumns)
    out[column] = static_cast<std::byte>(block.leasts[g]);
}

/// Bytes of all columns' scales for one block.
std::int64_t scale_row_bytes(WeightType type) {
  switch (type) {
    case WeightType::q4_1:
      return 2 * kHalfRow;
    case WeightType::q4_k:
    case WeightType::q5_k:
      return 2 * kHalfRow + 16 * kPanelColumns;
    case WeightType::q6_k:
      return kHalfRow + 16 * kPanelColumns;
    default:
      return kHalfRow;
  }
}

std::int64_t panel_code_bytes(WeightType type, std::int64_t k) {
  if (type == WeightType::q8_0) return k * kPanelColumns;
  const CodeUnit unit = code_unit(type);
  return k / unit.k * unit.bytes;
}

}  // namespace

void pack_ggml(const PackArgs& args) {
  const WeightType type = code_type(args.type);
  const auto put = is_byte_block(args.type) ? put_lines : put_codes;
  const GgmlBlock shape = ggml_block(type);
  const std::int64_t blocks = args.k / shape.k;
  const std::size_t panel_bytes = PackedMatrix::packed_panel_bytes(args.type, args.k);
  const std::int64_t row_bytes = code_row_bytes(type, args.k);
  Block block{};
  for (std::int64_t panel = 0; panel < ceil_div(args.n, kPanelColumns); ++panel) {
    std::byte* out = args.out + panel * args.panel_step * static_cast<std::int64_t>(panel_bytes);
    std::memset(out, 0, panel_bytes);
    std::byte* scales = out + panel_code_bytes(type, args.k);
    for (std::int64_t c = 0; c < kPanelColumns && panel * kPanelColumns + c < args.n; ++c) {
      const std::byte* row = args.source + (panel * kPanelColumns + c) * row_bytes;
      for (std::int64_t b = 0; b < blocks; ++b) {
        read_block(type, row + b * shape.bytes, block);
        put(type, block, b * shape.k, c, out);
        put_scales(type, block, c, scales + b * scale_row_bytes(type));
      }
    }
  }
}

}  // namespace ferry
