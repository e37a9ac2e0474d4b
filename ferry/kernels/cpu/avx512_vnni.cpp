// Products with weights that meet int8 rows by VPDPBUSD, compiled with its own -m flags.
// Everything else of the avx512 table needs no VNNI.
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
  static constexpr int kPassPanels = 2;
  static constexpr int kAhead = 4096;
  static constexpr int kFewPanels = 4;
  static constexpr int kRows = 4;
  static constexpr int kPanels = 2;
  static constexpr int kBlockRows = 0;
  static constexpr int kIntRows = 4;
  static constexpr int kIntPanels = 4;
  static constexpr int kByteRows = 4;
  static constexpr int kBytePanels = 2;
};

// Each builds on those before it.
// clang-format off
#include "ferry/kernels/cpu/bits.inl"
#include "ferry/kernels/cpu/vec_x86.inl"
#include "ferry/kernels/cpu/vec_avx512.inl"
#include "ferry/kernels/cpu/int_avx512.inl"
#include "ferry/kernels/cpu/int8_row_kernels.inl"
// clang-format on

}  // namespace

void vnni_gemm(const GemmArgs& args) { int8_row_gemm(args, kAvx512); }

std::uint64_t vnni_multiply_in_registers(WeightType weights, std::int64_t rounds) {
  if (takes_int8_rows(weights)) return multiply_bytes<Int8Codes>(rounds);
  return kAvx512.multiply_in_registers(weights, rounds);
}

}  // namespace ferry::cpu
