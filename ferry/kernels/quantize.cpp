// Quantising of weights, once: at load, or by `ferry quantize`. docs/numerics.md has the formulas.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "ferry/core/threads.h"
#include "ferry/kernels/kernels.h"
#include "ferry/kernels/packed_matrix.h"
#include "ferry/kernels/wire.h"

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

float rounded(float x) { return (x + kRounder) - kRounder; }

/// Magnitudes as bits: infinity is above all numbers, NaN above infinity.
float magnitude_or_nan(float greatest) {
  return std::isfinite(greatest) ? greatest : std::numeric_limits<float>::quiet_NaN();
}

/// The number of greatest magnitude, the first of several; NaN when one is not finite.
float peak_of(const float* x, std::int64_t n) {
  float peak = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    if (!std::isfinite(x[i])) return std::numeric_limits<float>::quiet_NaN();
    if (std::abs(x[i]) > std::abs(peak)) peak = x[i];
  }
  return peak;
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

/// The number of greatest magnitude becomes -8, which there is on one side only.
void quantize_int4(
    const std::byte* row, DType dtype, std::int64_t k, float* scales, std::byte* codes) {
  Piece piece;
  std::memset(codes, 0, static_cast<std::size_t>(code_row_bytes(WeightType::int4, k)));
  const auto put = [&](std::int64_t i, int code) {
    codes[i / 2] |= static_cast<std::byte>((code + 8) << (i % 2 * 4));
  };
  for (std::int64_t first = 0; first < k; first += kPiece) {
    const std::int64_t count = std::min(kPiece, k - first);
    piece.read(row, dtype, first, count);
    for (std::int64_t g = 0; g < count; g += kInt4Group) {
      const std::int64_t some = std::min<std::int64_t>(kInt4Group, count - g);
      float scale = peak_of(piece.x + g, some) / -8.0F;
      if (std::abs(scale) < kSmallestScale) scale = kSmallestScale;
      scales[(first + g) / kInt4Group] = scale;
      const float inverse = std::isfinite(scale) ? 1.0F / scale : 0.0F;
      for (std::int64_t i = 0; i < some; ++i) {
        const float code = std::isfinite(scale)
                               ? std::clamp(rounded(piece.x[g + i] * inverse), -8.0F, 7.0F)
                               : 0.0F;
        put(first + g + i, static_cast<int>(code));
      }
    }
  }
  if (k % 2 == 1) put(k, 0);
}

void quantize_fp8(
    const std::byte* row, DType dtype, std::int64_t k, const float* scales, std::byte* codes) {
  Piece piece;
  for (std::int64_t first = 0; first < k; first += kPiece) {
    const std::int64_t count = std::min(kPiece, k - first);
    piece.read(row, dtype, first, count);
    for (std::int64_t i = 0; i < count; ++i) {
      const float scale = scales[(first + i) / kFp8Block];
      const float x = std::isfinite(scale) ? piece.x[i] * (1.0F / scale) : 0.0F;
      codes[first + i] = fp8_code(x);
    }
  }
}

}  // namespace

void fp8_block_scales(
    const std::byte* rows, DType dtype, std::int64_t num_rows, std::int64_t k, float* scales) {
  Piece piece;
  const std::int64_t groups = weight_groups(WeightType::fp8, k);
  std::fill_n(scales, groups, 0.0F);
  const auto row_bytes = k * static_cast<std::int64_t>(dtype_bytes(dtype));
  for (std::int64_t r = 0; r < num_rows; ++r) {
    for (std::int64_t first = 0; first < k; first += kPiece) {
      const std::int64_t count = std::min(kPiece, k - first);
      piece.read(rows + r * row_bytes, dtype, first, count);
      for (std::int64_t b = 0; b < count; b += kFp8Block) {
        float& most = scales[(first + b) / kFp8Block];
        const float peak =
            std::abs(peak_of(piece.x + b, std::min<std::int64_t>(kFp8Block, count - b)));
        if (!(peak <= most)) most = std::isnan(most) ? most : peak;
      }
    }
  }
  for (std::int64_t g = 0; g < groups; ++g) {
    const float scale = magnitude_or_nan(scales[g]) / kGreatestFp8;
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
