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
#include "ferry/kernels/cpu/math.inl"
#include "ferry/kernels/cpu/row_ops.inl"
#include "ferry/kernels/cpu/wire.inl"
#include "ferry/kernels/cpu/gemm_common.inl"
#include "ferry/kernels/cpu/gemm_fma.inl"
#include "ferry/kernels/cpu/int_rows.inl"
#include "ferry/kernels/cpu/ggml_panels.inl"
#include "ferry/kernels/cpu/gemm_int.inl"
#include "ferry/kernels/cpu/byte_blocks.inl"
#include "ferry/kernels/cpu/gemm_byte_blocks.inl"
#include "ferry/kernels/cpu/peaks.inl"
// clang-format on

}  // namespace

void sdot_gemm(const GemmArgs& args) {
  if (args.weights->type == WeightType::int8 || args.weights->type == WeightType::int4)
    int_gemm(args);
  else if (is_byte_block(args.weights->type))
    byte_block_gemm(args);
  else
    kNeon.gemm(args);
}

std::uint64_t sdot_multiply_in_registers(WeightType weights, std::int64_t rounds) {
  if (weights == WeightType::int8) return multiply_bytes<Int8Codes>(rounds);
  if (takes_int8_rows(weights)) return multiply_bytes<Int4Codes>(rounds);
  return kNeon.multiply_in_registers(weights, rounds);
}

}  // namespace ferry::cpu
