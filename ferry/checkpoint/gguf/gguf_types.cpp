// The layouts and the order of operations are those of ggml, as the package gguf on PyPI has them:
// the same bits come out.
#include "ferry/checkpoint/gguf/gguf_types.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "ferry/kernels/kernels.h"

namespace ferry {

namespace {

constexpr int kSmall = 32;   // elements of a simple block
constexpr int kSuper = 256;  // of one with scales of scales

/// IQ4_NL's codes, and twice those of e2m1.
constexpr std::array<float, 16> kNonLinear = {
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
constexpr std::array<float, 16> kTwiceE2m1 = {
    0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

unsigned at(const std::byte* bytes, int i) { return std::to_integer<unsigned>(bytes[i]); }

float signed_at(const std::byte* bytes, int i) {
  return static_cast<float>(static_cast<std::int8_t>(bytes[i]));
}

float half_at(const std::byte* bytes) {
  float number = 0;
  kernels().convert(bytes, DType::f16, reinterpret_cast<std::byte*>(&number), DType::f32, 1);
  return number;
}

/// Of two halves of a block: code i in the lower half of byte i, code 16 + i in the upper.
unsigned small_code(const std::byte* codes, int i) {
  return i < kSmall / 2 ? at(codes, i) & 15 : at(codes, i - kSmall / 2) >> 4;
}

void read_q8_0(const std::byte* block, float* out) {
  const float scale = half_at(block);
  for (int i = 0; i < kSmall; ++i) out[i] = signed_at(block + 2, i) * scale;
}

void read_q4_0(const std::byte* block, float* out) {
  const float scale = half_at(block);
  for (int i = 0; i < kSmall; ++i)
    out[i] = scale * static_cast<float>(static_cast<int>(small_code(block + 2, i)) - 8);
}

void read_q4_1(const std::byte* block, float* out) {
  const float scale = half_at(block);
  const float least = half_at(block + 2);
  for (int i = 0; i < kSmall; ++i)
    out[i] = scale * static_cast<float>(small_code(block + 4, i)) + least;
}

void read_iq4_nl(const std::byte* block, float* out) {
  const float scale = half_at(block);
  for (int i = 0; i < kSmall; ++i) out[i] = scale * kNonLinear[small_code(block + 2, i)];
}

/// The scale is a power of two, of which the codes are twice too large.
void read_mxfp4(const std::byte* block, float* out) {
  const unsigned exponent = at(block, 0);
  const std::uint32_t bits = exponent < 2 ? 0x00200000U << exponent : (exponent - 1) << 23;
  const auto scale = std::bit_cast<float>(bits);
  for (int i = 0; i < kSmall; ++i) out[i] = scale * kTwiceE2m1[small_code(block + 1, i)];
}

/// Of Q4_K and Q5_K: six bits each of a scale and of what is taken off, for 32 elements.
struct ScaleAndLeast {
  unsigned scale, least;
};

ScaleAndLeast six_bits(const std::byte* packed, int group) {
  if (group < 4) return {at(packed, group) & 63, at(packed, group + 4) & 63};
  const unsigned low = at(packed, group + 4);
  return {(low & 15) | (at(packed, group - 4) >> 6 << 4), low >> 4 | (at(packed, group) >> 6 << 4)};
}

constexpr int kPackedScales = 12;

/// `high` is null where codes have four bits; else a bit of each, that of group g at place g.
void read_k(const std::byte* block, const std::byte* high, const std::byte* codes, float* out) {
  const float scale = half_at(block);
  const float least = half_at(block + 2);
  for (int group = 0; group < kSuper / kSmall; ++group) {
    const ScaleAndLeast own = six_bits(block + 4, group);
    const float d = scale * static_cast<float>(own.scale);
    const float off = least * static_cast<float>(own.least);
    const std::byte* halves = codes + group / 2 * kSmall;
    for (int i = 0; i < kSmall; ++i) {
      unsigned code = at(halves, i) >> (group % 2 * 4) & 15;
      if (high != nullptr) code |= (at(high, i) >> group & 1) << 4;
      *out++ = d * static_cast<float>(code) - off;
    }
  }
}

void read_q4_k(const std::byte* block, float* out) {
  read_k(block, nullptr, block + 4 + kPackedScales, out);
}

void read_q5_k(const std::byte* block, float* out) {
  const std::byte* high = block + 4 + kPackedScales;
  read_k(block, high, high + kSuper / 8, out);
}

void read_q6_k(const std::byte* block, float* out) {
  constexpr int kHalf = kSuper / 2;
  const std::byte* high = block + kHalf;
  const std::byte* scales = high + kSuper / 4;
  const float scale = half_at(scales + kSuper / 16);
  for (int i = 0; i < kSuper; ++i) {
    // 128 elements share 64 bytes of lower halves and 32 of upper pairs of bits.
    const int in_half = i % kHalf;
    const unsigned low = at(block, i / kHalf * 64 + in_half % 64) >> (in_half / 64 * 4) & 15;
    const unsigned top = at(high, i / kHalf * 32 + in_half % 32) >> (in_half / 32 * 2) & 3;
    const float d = scale * signed_at(scales, i / 16);
    out[i] = d * static_cast<float>(static_cast<int>(low | top << 4) - 32);
  }
}

// clang-format off
constexpr std::array kTypes = {
    GgufType{0, "F32", 1, 4, DType::f32},
    GgufType{1, "F16", 1, 2, DType::f16},
    GgufType{30, "BF16", 1, 2, DType::bf16},
    GgufType{2, "Q4_0", kSmall, 2 + 16, {}, read_q4_0, WeightType::q4_0},
    GgufType{3, "Q4_1", kSmall, 4 + 16, {}, read_q4_1, WeightType::q4_1},
    GgufType{8, "Q8_0", kSmall, 2 + 32, {}, read_q8_0, WeightType::q8_0},
    GgufType{12, "Q4_K", kSuper, 4 + kPackedScales + 128, {}, read_q4_k, WeightType::q4_k},
    GgufType{13, "Q5_K", kSuper, 4 + kPackedScales + 32 + 128, {}, read_q5_k, WeightType::q5_k},
    GgufType{14, "Q6_K", kSuper, 128 + 64 + 16 + 2, {}, read_q6_k, WeightType::q6_k},
    GgufType{20, "IQ4_NL", kSmall, 2 + 16, {}, read_iq4_nl, WeightType::iq4_nl},
    GgufType{39, "MXFP4", kSmall, 1 + 16, {}, read_mxfp4, WeightType::mxfp4},
    // Not supported; errors name them.
    GgufType{6, "Q5_0"}, GgufType{7, "Q5_1"}, GgufType{9, "Q8_1"}, GgufType{10, "Q2_K"},
    GgufType{11, "Q3_K"}, GgufType{15, "Q8_K"}, GgufType{16, "IQ2_XXS"}, GgufType{17, "IQ2_XS"},
    GgufType{18, "IQ3_XXS"}, GgufType{19, "IQ1_S"}, GgufType{21, "IQ3_S"}, GgufType{22, "IQ2_S"},
    GgufType{23, "IQ4_XS"}, GgufType{24, "I8"}, GgufType{25, "I16"}, GgufType{26, "I32"},
    GgufType{27, "I64"}, GgufType{28, "F64"}, GgufType{29, "IQ1_M"}, GgufType{34, "TQ1_0"},
    GgufType{35, "TQ2_0"}, GgufType{40, "NVFP4"}, GgufType{41, "Q1_0"},
};
// clang-format on

}  // namespace

void GgufType::read_row(const std::byte* row, std::int64_t columns, float* out) const {
  if (dtype) {
    kernels().convert(row, *dtype, reinterpret_cast<std::byte*>(out), DType::f32, columns);
    return;
  }
  for (std::int64_t j = 0; j < columns; j += elements, row += bytes) read_block(row, out + j);
}

/// mxfp4's are put in order; all others are packed as they are.
void GgufType::read_codes(const std::byte* row,
                          std::int64_t columns,
                          std::byte* codes,
                          float* scales) const {
  if (held != WeightType::mxfp4) {
    std::memcpy(codes, row, static_cast<std::size_t>(row_bytes(columns)));
    return;
  }
  for (std::int64_t j = 0; j < columns; j += elements, row += bytes) {
    *scales++ = power_scale(std::to_integer<std::uint8_t>(row[0]));
    for (int i = 0; i < kSmall; i += 2)
      *codes++ = static_cast<std::byte>(small_code(row + 1, i) | small_code(row + 1, i + 1) << 4);
  }
}

std::span<const GgufType> gguf_types() { return kTypes; }

const GgufType* find_gguf_type(std::uint32_t number) {
  const auto it = std::ranges::find(kTypes, number, &GgufType::number);
  return it == kTypes.end() ? nullptr : &*it;
}

const GgufType* find_gguf_type(std::string_view name) {
  const auto it = std::ranges::find(kTypes, name, &GgufType::name);
  return it == kTypes.end() ? nullptr : &*it;
}

}  // namespace ferry
