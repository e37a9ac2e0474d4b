// Quantising of weights, once: at load, or by `ferry quantize`. docs/numerics.md has the formulas.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "ferry/core/threads.h"
#include "ferry/core/types.h"
#include "ferry/kernels/kernels.h"
#include "ferry/kernels/packed_matrix.h"
#include "ferry/wire.h"

namespace ferry {

namespace {

constexpr float kSmallestScale = 0x1p-126F;  // what threads do not flush
constexpr float kGreatestFp8 = 448.0F;

/// A piece of a row, as f32. Divides every group and block.
constexpr std::int64_t kPiece = 512;

struct Piece {
  alignas(64) float x[kPiece];

  /// Elements [first, first + count).
  void read(const std::byte* row, DType dtype, std::int64_t first, std::int64_t count) {
    const auto size = static_cast<std::int64_t>(dtype_bytes(dtype));
    kernels().convert(
        row + first * size, dtype, reinterpret_cast<std::byte*>(x), DType::f32, count);
  }
};

/// Adding it to a magnitude below 2^22 rounds that to an integer, nearest even.
constexpr float kRounder = 0x1.8p23F;

/// The greatest magnitude; NaN when a number is not finite. By bits, where infinity and NaN are
/// above all numbers.
float greatest_magnitude(const float* x, std::int64_t n) {
  std::int32_t greatest = 0;
  for (std::int64_t i = 0; i < n; ++i)
    greatest = std::max(greatest, std::bit_cast<std::int32_t>(x[i]) & 0x7fffffff);
  const auto magnitude = std::bit_cast<float>(greatest);
  return std::isfinite(magnitude) ? magnitude : std::numeric_limits<float>::quiet_NaN();
}

/// To e4m3fn, nearest even. REQUIRES: |x| < 464.
std::byte fp8_code(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t magnitude = bits & 0x7fffffffU;
  constexpr std::uint32_t kSmallestNormal = 121U << 23;  // 2^-6
  const std::uint32_t exponent = std::max(magnitude & 0x7f800000U, kSmallestNormal);
  // 2^20 times the power of two at or below |x|: its last bit stands for what the code's does.
  const float unit = std::bit_cast<float>(exponent + (20U << 23));
  const auto sum = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + unit);
  const std::uint32_t code = (sum & 0xffU) + (((exponent >> 23) - 121U) << 3);
  return static_cast<std::byte>(code | (bits >> 24 & 0x80U));
}

void quantize_int8(
    const std::byte* row, DType dtype, std::int64_t k, float* scale, std::byte* codes) {
  // As the wire of that name, whose row has its scale behind the codes.
  std::vector<std::byte> encoded(wire_row_bytes(WireType::int8, k));
  kernels().encode(row, dtype, encoded.data(), WireType::int8, k);
  std::memcpy(codes, encoded.data(), static_cast<std::size_t>(k));
  std::memcpy(scale, encoded.data() + wire_scales(WireType::int8, k).offset, sizeof *scale);
}

/// One group of up to 64: the first number of greatest magnitude becomes -8, which there is on one
/// side only. Writes whole bytes, an odd last one with a zero. Returns the scale.
float quantize_group(const float* x, std::int64_t n, std::byte* codes) {
  const float greatest = greatest_magnitude(x, n);
  const float* peak = std::find_if(x, x + n, [&](float v) { return std::abs(v) == greatest; });
  const bool finite = peak != x + n;
  float scale = finite ? *peak / -8.0F : std::numeric_limits<float>::quiet_NaN();
  if (std::abs(scale) < kSmallestScale) scale = kSmallestScale;
  const float inverse = finite ? 1.0F / scale : 0.0F;
  std::int32_t shifted[kInt4Group + 1];  // code + 8
  for (std::int64_t i = 0; i < n; ++i) {
    const float code = (x[i] * inverse + kRounder) - kRounder;
    shifted[i] = finite ? static_cast<std::int32_t>(std::min(code, 7.0F)) + 8 : 8;
  }
  shifted[n] = 8;
  for (std::int64_t i = 0; i < n; i += 2)
    codes[i / 2] = static_cast<std::byte>(shifted[i] | shifted[i + 1] << 4);
  return scale;
}

/// Calls work(first, x, count) for each group of a row, with its numbers as f32; the last one may
/// be shorter.
template <class Work>
void for_each_group(
    const std::byte* row, DType dtype, std::int64_t k, std::int64_t group, const Work& work) {
  Piece piece;
  for (std::int64_t first = 0; first < k; first += kPiece) {
    const std::int64_t count = std::min(kPiece, k - first);
    piece.read(row, dtype, first, count);
    for (std::int64_t g = 0; g < count; g += group)
      work(first + g, piece.x + g, std::min(group, count - g));
  }
}

void quantize_int4(
    const std::byte* row, DType dtype, std::int64_t k, float* scales, std::byte* codes) {
  for_each_group(
      row, dtype, k, kInt4Group, [&](std::int64_t first, const float* x, std::int64_t count) {
        scales[first / kInt4Group] = quantize_group(x, count, codes + first / 2);
      });
}

void quantize_fp8(
    const std::byte* row, DType dtype, std::int64_t k, const float* scales, std::byte* codes) {
  for_each_group(
      row, dtype, k, kFp8Block, [&](std::int64_t first, const float* x, std::int64_t count) {
        const float scale = scales[first / kFp8Block];
        std::byte* out = codes + first;
        if (!std::isfinite(scale)) {
          std::memset(out, 0, static_cast<std::size_t>(count));
          return;
        }
        const float inverse = 1.0F / scale;
        for (std::int64_t i = 0; i < count; ++i) out[i] = fp8_code(x[i] * inverse);
      });
}

/// To e2m1, nearest even, and to 6 from there on. REQUIRES: |x| < 8.
unsigned e2m1_code(float x) {
  constexpr std::uint8_t kCodes[9] = {0, 1, 2, 3, 4, 0, 5, 0, 6};  // of twice a number up to 4
  const float magnitude = std::abs(x);
  const float unit = magnitude < 2 ? 0.5F : magnitude < 4 ? 1.0F : 2.0F;
  const auto units = static_cast<int>((magnitude / unit + kRounder) - kRounder);
  const int doubled = units * static_cast<int>(unit * 2);
  const unsigned code = doubled > 8 ? 7U : kCodes[doubled];
  return code | (std::signbit(x) ? 8U : 0U);
}

/// The scale's exponent for a group: the greatest number becomes 3.5 to 7 of it, which rounds to 4
/// or 6; up to 8 where more would leave f32. 255 where a number is not finite.
std::uint8_t power_for(float greatest) {
  constexpr std::uint32_t kQuarter = 1U << 21U;  // from 1.75 on: up
  if (!std::isfinite(greatest)) return 255;
  const std::uint32_t rounded = std::bit_cast<std::uint32_t>(greatest) + kQuarter;
  return static_cast<std::uint8_t>(std::clamp(rounded >> 23U, 3U, 254U) - 2U);
}

void quantize_mxfp4(
    const std::byte* row, DType dtype, std::int64_t k, float* scales, std::byte* codes) {
  constexpr auto kInfinite = std::byte{0x77};  // two of 6, times 2^128
  for_each_group(
      row, dtype, k, kMxfp4Group, [&](std::int64_t first, const float* x, std::int64_t count) {
        const std::uint8_t exponent = power_for(greatest_magnitude(x, count));
        scales[first / kMxfp4Group] = power_scale(exponent);
        std::byte* out = codes + first / 2;
        const bool finite = exponent != 255;
        std::memset(out,
                    finite ? 0 : std::to_integer<int>(kInfinite),
                    static_cast<std::size_t>(ceil_div(count, 2)));
        if (!finite) return;
        const float inverse = power_scale(static_cast<std::uint8_t>(254 - exponent));
        for (std::int64_t i = 0; i < count; ++i)
          out[i / 2] |= static_cast<std::byte>(e2m1_code(x[i] * inverse) << (i % 2 * 4));
      });
}

}  // namespace

void fp8_block_scales(
    const std::byte* rows, DType dtype, std::int64_t num_rows, std::int64_t k, float* scales) {
  const std::int64_t groups = weight_groups(WeightType::fp8, k);
  std::fill_n(scales, groups, 0.0F);
  const auto row_bytes = k * static_cast<std::int64_t>(dtype_bytes(dtype));
  for (std::int64_t r = 0; r < num_rows; ++r) {
    for_each_group(rows + r * row_bytes,
                   dtype,
                   k,
                   kFp8Block,
                   [&](std::int64_t first, const float* x, std::int64_t count) {
                     float& most = scales[first / kFp8Block];
                     const float here = greatest_magnitude(x, count);
                     if (!(here <= most)) most = std::isnan(most) ? most : here;
                   });
  }
  for (std::int64_t g = 0; g < groups; ++g) {
    const float scale = scales[g] / kGreatestFp8;
    scales[g] = scale < kSmallestScale ? kSmallestScale : scale;
  }
}

void quantize_row(WeightType type,
                  const std::byte* row,
                  DType dtype,
                  std::int64_t k,
                  float* scales,
                  std::byte* codes) {
  if (type == WeightType::int8)
    quantize_int8(row, dtype, k, scales, codes);
  else if (type == WeightType::int4)
    quantize_int4(row, dtype, k, scales, codes);
  else if (type == WeightType::mxfp4)
    quantize_mxfp4(row, dtype, k, scales, codes);
  else
    quantize_fp8(row, dtype, k, scales, codes);
}

QuantizedMatrix quantize_matrix(
    WeightType type, const std::byte* source, DType dtype, std::int64_t n, std::int64_t k) {
  const FlushDenormals flush;
  const std::int64_t groups = weight_groups(type, k);
  const std::int64_t shared = rows_per_scale(type);
  const std::int64_t code_bytes = code_row_bytes(type, k);
  const std::int64_t row_bytes = k * static_cast<std::int64_t>(dtype_bytes(dtype));
  QuantizedMatrix out;
  out.codes.resize(static_cast<std::size_t>(n * code_bytes));
  out.scales.resize(static_cast<std::size_t>(ceil_div(n, shared) * groups));
  for (std::int64_t r = 0; r < n; ++r) {
    const std::byte* row = source + r * row_bytes;
    float* scales = out.scales.data() + r / shared * groups;
    if (type == WeightType::fp8 && r % shared == 0)
      fp8_block_scales(row, dtype, std::min(shared, n - r), k, scales);
    quantize_row(type, row, dtype, k, scales, out.codes.data() + r * code_bytes);
  }
  return out;
}

}  // namespace ferry
