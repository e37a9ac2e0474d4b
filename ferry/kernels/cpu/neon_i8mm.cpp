// Products with int8 and int4 weights by SMMLA (one row: SDOT), compiled with its own -march flag.
// Everything else of the neon table needs none.
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
  static constexpr int kRows = 2;
  static constexpr int kPanels = 1;
  static constexpr int kBlockRows = 0;
  static constexpr int kIntRows = 4;
  static constexpr int kIntPanels = 1;
  static constexpr int kByteRows = 4;
  static constexpr int kBytePanels = 1;
};

// Each builds on those before it.
// clang-format off
#include "ferry/kernels/cpu/bits.inl"
#include "ferry/kernels/cpu/vec_neon.inl"
#include "ferry/kernels/cpu/int_neon.inl"
#include "ferry/kernels/cpu/int8_row_kernels.inl"
#include "ferry/kernels/cpu/int_i8mm.inl"

// clang-format on

/// As peaks.inl has it of other instructions.
std::uint64_t multiply_eights(std::int64_t rounds) {
  constexpr int kSums = 20;
  int32x4_t sum[kSums];
  for (int32x4_t& s : sum) s = vdupq_n_s32(0);
  int8x16_t x = vdupq_n_s8(1);
  for (std::int64_t round = 0; round < rounds; ++round) {
    asm volatile("" : "+w"(x));  // for all the compiler knows, others than in the last round
    for (int32x4_t& s : sum) s = vmmlaq_s32(s, x, x);
  }
  for (const int32x4_t& s : sum) asm volatile("" : : "w"(s));
  return static_cast<std::uint64_t>(rounds) * kSums * 32 * 2;
}

}  // namespace

void smmla_gemm(const GemmArgs& args) { int8_row_gemm<EightsOfBlock>(args, kNeon); }

std::uint64_t smmla_multiply_in_registers(WeightType weights, std::int64_t rounds) {
  if (weights == WeightType::int8 || weights == WeightType::int4) return multiply_eights(rounds);
  return kNeon.multiply_in_registers(weights, rounds);
}

}  // namespace ferry::cpu
