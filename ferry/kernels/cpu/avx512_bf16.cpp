// Products with weights of bf16, or that become bf16, by VDPBF16PS, for the numeric class `fast`,
// compiled with its own -m flags. Everything else of the table is the exact class's.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "ferry/kernels/cpu/tables.h"

namespace ferry::cpu {

namespace {

struct Tiling {
  static constexpr int kOnePanels =
      2;  // for one row alone a chain waits longer for itself than for memory
  static constexpr int kPassPanels = 4;
  static constexpr int kAhead = 4096;
  static constexpr int kFewPanels = 4;
  static constexpr int kRows = 6;
  static constexpr int kPanels = 4;
  static constexpr int kBlockRows = 0;
  static constexpr int kSums = 16;
};

// Each builds on those before it.
// clang-format off
#include "ferry/kernels/cpu/bits.inl"
#include "ferry/kernels/cpu/vec_x86.inl"
#include "ferry/kernels/cpu/vec_avx512.inl"
#include "ferry/kernels/cpu/int_avx512.inl"
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
  __m512i v;
};

inline DotPairs panel_pairs(const std::byte* from) { return {_mm512_loadu_si512(from)}; }

inline DotPairs pairs_of(const Pairs& pairs) { return {bf16_pairs(pairs)}; }

inline F32x16 dot(F32x16 sum, const DotPairs& weights, std::int32_t pair) {
  const __m512i x = _mm512_set1_epi32(pair);
  return {_mm512_dpbf16_ps(
      sum.v, reinterpret_cast<const __m512bh&>(x), reinterpret_cast<const __m512bh&>(weights.v))};
}

#include "ferry/kernels/cpu/gemm_dot.inl"

}  // namespace

void dot_gemm(const GemmArgs& args) { gemm_dot(args); }

std::uint64_t dot_multiply_in_registers(std::int64_t rounds) {
  return multiply_pairs_of_bf16(rounds);
}

}  // namespace ferry::cpu
