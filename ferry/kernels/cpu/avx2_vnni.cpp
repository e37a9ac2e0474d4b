// Products with weights that meet int8 rows by AVX2's VPDPBUSD, compiled with its own -m flags.
// Everything else of the table is avx2's.
#include <immintrin.h>

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
  static constexpr int kFewPanels = 2;
  static constexpr int kRows = 2;
  static constexpr int kPanels = 1;
  static constexpr int kBlockRows = 0;
  static constexpr int kIntRows = 6;
  static constexpr int kIntPanels = 1;
  static constexpr int kByteRows = 6;
  static constexpr int kBytePanels = 1;
};

// Each builds on those before it.
// clang-format off
#include "ferry/kernels/cpu/bits.inl"
#include "ferry/kernels/cpu/vec_x86.inl"
#include "ferry/kernels/cpu/vec_avx2.inl"
#include "ferry/kernels/cpu/int_avx2.inl"
#include "ferry/kernels/cpu/int8_row_kernels.inl"
// clang-format on

}  // namespace

void avx2_vnni_gemm(const GemmArgs& args) { int8_row_gemm(args, kAvx2); }

std::uint64_t avx2_vnni_multiply_in_registers(WeightType weights, std::int64_t rounds) {
  if (takes_int8_rows(weights)) return multiply_bytes<Int8Codes>(rounds);
  return kAvx2.multiply_in_registers(weights, rounds);
}

}  // namespace ferry::cpu
