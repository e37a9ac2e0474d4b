// Products with weights of bf16, or that become bf16, by BFDOT, for the numeric class `fast`,
// compiled with its own -march flag. Everything else of the table is the exact class's.
#include <arm_neon.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "ferry/kernels/cpu/tables.h"

namespace ferry::cpu {

namespace {

struct Tiling {
  static constexpr int kOnePanels = 1;
  static constexpr int kPassPanels = 1;
  static constexpr int kAhead = 4096;
  static constexpr int kFewPanels = 4;
  static constexpr int kRows = 4;
  static constexpr int kPanels = 1;
  static constexpr int kBlockRows = 0;
  static constexpr int kSums = 5;
};

// Each builds on those before it.
// clang-format off
#include "ferry/kernels/cpu/bits.inl"
#include "ferry/kernels/cpu/vec_neon.inl"
#include "ferry/kernels/cpu/int_neon.inl"
#include "ferry/kernels/cpu/math.inl"
#include "ferry/kernels/cpu/row_ops.inl"
#include "ferry/kernels/cpu/wire.inl"
#include "ferry/kernels/cpu/gemm_common.inl"
#include "ferry/kernels/cpu/gemm_fma.inl"
#include "ferry/kernels/cpu/fp8_panels.inl"
#include "ferry/kernels/cpu/gemm_fp8.inl"
#include "ferry/kernels/cpu/mxfp4_panels.inl"
#include "ferry/kernels/cpu/gemm_mxfp4.inl"
#include "ferry/kernels/cpu/ggml_panels.inl"
#include "ferry/kernels/cpu/gemm_ggml.inl"

// clang-format on

struct DotPairs {
  bfloat16x8_t q0, q1, q2, q3;
};

inline DotPairs panel_pairs(const std::byte* from) {
  const auto four = [&](int i) { return vreinterpretq_bf16_u8(load_sixteen(from + 16 * i)); };
  return {four(0), four(1), four(2), four(3)};
}

inline DotPairs pairs_of(const Pairs& pairs) {
  const auto four = [](float32x4_t even, float32x4_t odd) {
    return vreinterpretq_bf16_u8(bf16_pairs(even, odd));
  };
  return {four(pairs.even.q0, pairs.odd.q0),
          four(pairs.even.q1, pairs.odd.q1),
          four(pairs.even.q2, pairs.odd.q2),
          four(pairs.even.q3, pairs.odd.q3)};
}

inline F32x16 dot(F32x16 sum, const DotPairs& weights, std::int32_t pair) {
  const bfloat16x8_t x = vreinterpretq_bf16_s32(vdupq_n_s32(pair));
  return {vbfdotq_f32(sum.q0, weights.q0, x),
          vbfdotq_f32(sum.q1, weights.q1, x),
          vbfdotq_f32(sum.q2, weights.q2, x),
          vbfdotq_f32(sum.q3, weights.q3, x)};
}

#include "ferry/kernels/cpu/gemm_dot.inl"

}  // namespace

void dot_gemm(const GemmArgs& args) { gemm_dot(args); }

std::uint64_t dot_multiply_in_registers(std::int64_t rounds) {
  return multiply_pairs_of_bf16(rounds);
}

}  // namespace ferry::cpu
