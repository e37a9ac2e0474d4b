// How weights are held: the types of packed matrices, their panels, and how a checkpoint's matrix
// is quantised and packed, once at load. docs/numerics.md has the formulas and the error bounds.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "ferry/core/types.h"

namespace ferry {

enum class WeightType : std::uint8_t {
  f32,
  bf16,
  int8,   ///< -127..127, one scale a column; inputs are rounded to int8 with a scale a row
  fp8,    ///< e4m3fn, one scale for 128 columns x 128 k (DeepSeek-V3's blocks); inputs stay bf16
  int4,   ///< -8..7, one scale for 64 k of a column; inputs as for int8
  mxfp4,  ///< e2m1, a power of two for 32 k of a column (OCP's MXFP4); inputs stay bf16
  // ggml's blocks, held as a GGUF file has them and made of nothing else; inputs stay bf16.
  q8_0,    ///< code * scale: -128..127, an f16 for 32 k of a column
  q4_0,    ///< (code - 8) * scale: 0..15, as above
  iq4_nl,  ///< the same of 16 numbers that lie closer together around zero
  q4_1,    ///< code * scale + least: 0..15, two f16 for 32 k
  q4_k,    ///< as q4_1, but scale and least are 6 bits for 32 k times an f16 for 256
  q5_k,    ///< likewise: 0..31
  q6_k,    ///< (code - 32) * scale: 0..63, 8 bits for 16 k times an f16 for 256
  // The same numbers in panels for products of bytes: inputs are rounded to int8 with a scale for
  // each 32 k of a row.
  q8_0_int8,
  q4_0_int8,
  iq4_nl_int8,
  q4_1_int8,
  q4_k_int8,
  q5_k_int8,
  q6_k_int8,
  mxfp4_int8,
};

/// Those that any matrix can be held as, in the order of the enumeration.
std::span<const WeightType> weight_types();

/// ggml's, likewise, but for those that meet bytes.
std::span<const WeightType> ggml_types();

/// Those that meet bytes, block by block.
std::span<const WeightType> byte_block_types();

constexpr bool is_ggml(WeightType type) {
  return type >= WeightType::q8_0 && type <= WeightType::q6_k_int8;
}

constexpr bool is_byte_block(WeightType type) { return type >= WeightType::q8_0_int8; }

/// Whose inputs are rounded to int8 before they are multiplied.
constexpr bool takes_int8_rows(WeightType type) {
  return type == WeightType::int8 || type == WeightType::int4 || is_byte_block(type);
}

/// The type of the codes that panels of such weights are packed from: most are of their own.
constexpr WeightType code_type(WeightType type) {
  if (!is_byte_block(type)) return type;
  if (type == WeightType::mxfp4_int8) return WeightType::mxfp4;
  const int place = static_cast<int>(type) - static_cast<int>(WeightType::q8_0_int8);
  return static_cast<WeightType>(static_cast<int>(WeightType::q8_0) + place);
}

/// How the same codes are held to meet bytes; `type` itself where there is no such form.
constexpr WeightType with_int8_rows(WeightType type) {
  if (type == WeightType::mxfp4) return WeightType::mxfp4_int8;
  if (type < WeightType::q8_0 || is_byte_block(type)) return type;
  const int place = static_cast<int>(type) - static_cast<int>(WeightType::q8_0);
  return static_cast<WeightType>(static_cast<int>(WeightType::q8_0_int8) + place);
}

/// Whose products are bf16's: numbers of bf16, or codes that become such.
constexpr bool multiplies_bf16(WeightType type) {
  return type == WeightType::bf16 || type == WeightType::fp8 || type == WeightType::mxfp4 ||
         (is_ggml(type) && !is_byte_block(type));
}

/// The name that flags and JSON use: the enumerator's.
std::string_view weight_type_name(WeightType type);

/// The one of weight_types() of that name. Throws ConfigError that names `option` and lists the
/// known ones.
WeightType parse_weight_type(std::string_view name, std::string_view option);

/// Weights held as elements of `type`. REQUIRES: f32 or bf16.
constexpr WeightType weight_type(DType type) {
  return type == DType::f32 ? WeightType::f32 : WeightType::bf16;
}

/// The type of the rows that a product with such weights takes, and so of a model's activations.
constexpr DType activation_type(WeightType type) {
  return type == WeightType::f32 ? DType::f32 : DType::bf16;
}

/// Whether weights are codes with scales.
constexpr bool is_quantized(WeightType type) {
  return type != WeightType::f32 && type != WeightType::bf16;
}

inline constexpr int kPanelColumns = 16;  // columns of a weight panel
inline constexpr int kBf16KBlock = 32;    // bf16, fp8 and mxfp4 panels are padded to this many k
inline constexpr int kIntKBlock = 64;     // int8 and int4 panels to this many
inline constexpr int kInt4Group = 64;     // k of a column that share a scale
inline constexpr int kFp8Block = 128;     // k, and columns of the checkpoint, that share a scale
inline constexpr int kMxfp4Group = 32;    // k of a column that share a scale
inline constexpr int kGgmlGroup = 32;     // k of a column that share a scale, in ggml's blocks
inline constexpr int kGgmlSuper = 256;    // in those whose scales share one: q4_k, q5_k, q6_k

/// A block of ggml's as files have it: k of a column, and bytes. REQUIRES: is_ggml(type).
struct GgmlBlock {
  std::int64_t k = 0;
  std::int64_t bytes = 0;
};

constexpr GgmlBlock ggml_block(WeightType type) {
  switch (code_type(type)) {
    case WeightType::q8_0:
      return {kGgmlGroup, 2 + 32};
    case WeightType::q4_1:
      return {kGgmlGroup, 4 + 16};
    case WeightType::q4_k:
      return {kGgmlSuper, 4 + 12 + 128};
    case WeightType::q5_k:
      return {kGgmlSuper, 4 + 12 + 32 + 128};
    case WeightType::q6_k:
      return {kGgmlSuper, 128 + 64 + 16 + 2};
    default:
      return {kGgmlGroup, 2 + 16};
  }
}

/// Scales of one column that lie beside its codes.
constexpr std::int64_t weight_groups(WeightType type, std::int64_t k) {
  if (type == WeightType::int8) return 1;
  if (type == WeightType::int4) return ceil_div(k, kInt4Group);
  if (code_type(type) == WeightType::mxfp4) return ceil_div(k, kMxfp4Group);
  return type == WeightType::fp8 ? ceil_div(k, kFp8Block) : 0;
}

/// Counts the layouts of panels that there have been, all types together: files of packed weights
/// (ferry/checkpoint/packed_file.h) of another one are refused. The same for all instruction sets.
/// Raise it with every change of what the next comment says.
inline constexpr std::uint32_t kPanelLayout = 1;

/// A weight matrix [k, n] (out = in * W) packed once at load into panels of 16 columns, panel after
/// panel, columns beyond n and k beyond the padded end zero. Borrowed memory, 64-byte aligned.
///   f32    [k][16 columns]
///   bf16   [k_padded / 2][16 columns][2]: pairs of consecutive k side by side, as AMX and
///          VDPBF16PS want them
///   int8   [k_padded / 4][16 columns][4] of code + 128, then scales
///   int4   [k_padded / 8][16 columns][4 bytes] of code + 8: byte j of eight k holds number j in
///   its
///          lower half and number 4 + j in its upper; then scales
///   fp8    [k_padded / 2][2][16 columns] of codes, then scales, 2^8 times as large: codes are read
///          as f16, which makes 2^-8 of their values. A code of NaN makes its column's scale NaN
///   mxfp4  [k_padded / 4][32 bytes], the byte of an even and the odd k behind it (in the upper
///          half) of column c at (k % 4 / 2) * 8 + (c / 4 % 2) * 16 + (c / 8) * 4 + c % 4; then
///          scales, a byte s for 2^(s - 127), 1 to 254, [groups][16 columns]; then to whole lines
///   ggml's blocks: codes, then scales, then to whole lines; a "pair" is an even k and the odd one
///          behind it, [16 columns], the odd one in the upper half. k is whole blocks
///     q8_0              [k][16 columns]
///     q4_0, q4_1, q4_k  [k / 2] pairs
///     iq4_nl            likewise
///     q5_k              [k / 8][4 pairs, then [16 columns] of the fifth bits, k after k]
///     q6_k              [k / 4][2 pairs, then [16 columns] of the upper two bits, k after k]
///   and their scales, f16 unless said; one that is not finite is NaN
///     q8_0, q4_0, iq4_nl  [k / 32][16 columns]
///     q4_1                [k / 32][scale, -least][16 columns]
///     q4_k, q5_k          [k / 256][scale, least: f16; 8 scales, 8 leasts: bytes][16 columns]
///     q6_k                [k / 256][scale: f16; 16 scales: bytes with sign][16 columns]
///   ..._int8: as many bytes as the type without it, and its scales; but codes in lines of 64
///          bytes, of which four k lie side by side, [16 columns][4]
///     q8_0_int8             [k / 4] lines of code + 128
///     those of four bits    [k / 8] lines, byte j of eight k as in int4
///     q5_k_int8             [k / 32][4 such lines, then one whose bits i are the fifth ones of the
///                           group's k from 4 i on]
///     q6_k_int8             [k / 16][2 such lines, then one whose bits 2 i and 2 i + 1 are the
///                           upper ones of k from 4 i on]
/// Other scales are f32 [groups][16 columns]; k_padded = k rounded up to whole blocks.
struct PackedMatrix {
  WeightType type = WeightType::f32;
  std::int64_t k = 0;
  std::int64_t n = 0;
  const std::byte* data = nullptr;

  std::int64_t panels() const { return ceil_div(n, kPanelColumns); }

  /// Panels of a gate, up matrix: n = 2 * inter columns, but each half is padded by itself.
  std::int64_t gated_panels() const { return 2 * ceil_div(n / 2, kPanelColumns); }

  std::size_t panel_bytes() const { return packed_panel_bytes(type, k); }

  static std::size_t packed_panel_bytes(WeightType type, std::int64_t k);
};

/// Rows of the checkpoint's matrix that share their scales.
constexpr std::int64_t rows_per_scale(WeightType type) {
  return type == WeightType::fp8 ? kFp8Block : 1;
}

/// Bytes of a quantised row's codes: int8 and fp8 a byte each, int4 (as code + 8) and mxfp4 two in
/// a byte, the lower half first; ggml's blocks as files have them, scales and all.
constexpr std::int64_t code_row_bytes(WeightType type, std::int64_t k) {
  if (is_ggml(type)) return k / ggml_block(type).k * ggml_block(type).bytes;
  return type == WeightType::int4 || code_type(type) == WeightType::mxfp4 ? ceil_div(k, 2) : k;
}

/// mxfp4's scales among those of other types: the byte s (E8M0) where f32 has its exponent. That is
/// 2^(s - 127), but for the two that f32 does not have as normal numbers: 0 is 2^-127, infinity is
/// 2^128.
constexpr float power_scale(std::uint8_t exponent) {
  return std::bit_cast<float>(std::uint32_t{exponent} << 23U);
}

constexpr std::uint8_t power_exponent(float scale) {
  return static_cast<std::uint8_t>(std::bit_cast<std::uint32_t>(scale) >> 23U);
}

/// The scales of up to 128 plain rows [rows, k] that share them: [weight_groups(fp8, k)]. An
/// infinity or a NaN makes its block's scale NaN.
void fp8_block_scales(
    const std::byte* rows, DType dtype, std::int64_t num_rows, std::int64_t k, float* scales);

/// Quantises one plain row of k elements. REQUIRES: not is_ggml(type), here and below. Rows that
/// share scales (fp8) are given them; others' are written, [weight_groups]. An infinity or a NaN
/// makes its scale NaN, and the whole group infinite with mxfp4, which has no such scale. The
/// thread flushes denormals, as for kernels. `codes`: [code_row_bytes].
void quantize_row(WeightType type,
                  const std::byte* row,
                  DType dtype,
                  std::int64_t k,
                  float* scales,
                  std::byte* codes);

/// A checkpoint's matrix [n, k], quantised: what `ferry quantize` writes.
struct QuantizedMatrix {
  std::vector<std::byte> codes;  ///< [n][code_row_bytes]
  std::vector<float> scales;     ///< [ceil(n / rows_per_scale)][weight_groups]
};

/// Quantises a plain matrix [n, k], row-major. REQUIRES: is_quantized(type).
QuantizedMatrix quantize_matrix(
    WeightType type, const std::byte* source, DType dtype, std::int64_t n, std::int64_t k);

/// Packs a matrix [n, k] as checkpoints store it into panels: column c of W is source row c. Pads
/// with zeros. Quantised types take rows that are quantised already.
struct PackArgs {
  WeightType type = WeightType::f32;  ///< of the packed weights
  const std::byte* source = nullptr;  ///< [n, k] row-major of source_type, or codes
  DType source_type = DType::f32;     ///< of plain rows
  const float* scales = nullptr;      ///< of codes, [ceil(n / scale_rows)][weight_groups]; or none
  std::int64_t scale_rows = 1;        ///< rows that share scales
  std::int64_t k = 0;
  std::int64_t n = 0;
  std::byte* out = nullptr;  ///< ceil(n / 16) panels
  /// Distance between the panels written, in panels: 2 interleaves gate and up.
  std::int64_t panel_step = 1;
};

void pack_matrix(const PackArgs& args);

/// The same where is_ggml(args.type), which pack_matrix calls. REQUIRES: k is whole blocks.
void pack_ggml(const PackArgs& args);

/// The rows [n, k] of which pack_matrix() made panels, bit for bit; of fp8 their codes, where a NaN
/// is another code. `panel_step`: as PackArgs'. REQUIRES: bf16 or fp8.
void unpack_rows(const PackedMatrix& matrix, std::int64_t panel_step, std::byte* rows);

/// Likewise the scales of fp8, [ceil(n / 128)][weight_groups]. False where the rows of a block have
/// not all the same: they had scales of their own, or one a code of NaN.
bool unpack_block_scales(const PackedMatrix& matrix, std::int64_t panel_step, float* scales);

}  // namespace ferry
