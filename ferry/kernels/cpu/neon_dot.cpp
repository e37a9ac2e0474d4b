// Products with weights that meet int8 rows by SDOT, compiled with its own -march flag. Everything
// else of the neon table needs none.
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
// clang-format on

}  // namespace

void sdot_gemm(const GemmArgs& args) { int8_row_gemm(args, kNeon); }

std::uint64_t sdot_multiply_in_registers(WeightType weights, std::int64_t rounds) {
  if (weights == WeightType::int8) return multiply_bytes<Int8Codes>(rounds);
  if (takes_int8_rows(weights)) return multiply_bytes<Int4Codes>(rounds);
  return kNeon.multiply_in_registers(weights, rounds);
}

}  // namespace ferry::cpu
