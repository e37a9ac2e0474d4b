// The NEON kernels, for any 64-bit ARM processor.
#include <arm_neon.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
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
  static constexpr int kBlockRows = 6;
  static constexpr int kIntRows = 4;
  static constexpr int kIntPanels = 1;
  static constexpr int kQueries = 2;
  static constexpr int kSums = 4;
};

// Each builds on those before it.
// clang-format off
#include "ferry/kernels/cpu/bits.inl"
#include "ferry/kernels/cpu/vec_neon.inl"
#include "ferry/kernels/cpu/int_neon.inl"
#include "ferry/kernels/cpu/math.inl"
#include "ferry/kernels/cpu/row_ops.inl"
#include "ferry/kernels/cpu/delta.inl"
#include "ferry/kernels/cpu/wire.inl"
#include "ferry/kernels/cpu/gemm_common.inl"
#include "ferry/kernels/cpu/attend.inl"
#include "ferry/kernels/cpu/index_scores.inl"
#include "ferry/kernels/cpu/gemm_fma.inl"
#include "ferry/kernels/cpu/fp8_panels.inl"
#include "ferry/kernels/cpu/gemm_fp8.inl"
#include "ferry/kernels/cpu/mxfp4_panels.inl"
#include "ferry/kernels/cpu/gemm_mxfp4.inl"
#include "ferry/kernels/cpu/ggml_panels.inl"
#include "ferry/kernels/cpu/gemm_ggml.inl"
#include "ferry/kernels/cpu/gemm_blocks.inl"
#include "ferry/kernels/cpu/int_rows.inl"
#include "ferry/kernels/cpu/gemm_int.inl"
#include "ferry/kernels/cpu/gemm.inl"
#include "ferry/kernels/cpu/peaks.inl"
#include "ferry/kernels/cpu/sampling_neon.inl"
#include "ferry/kernels/cpu/sampling.inl"
// clang-format on

}  // namespace

constinit const Kernels kNeon{.isa = Isa::neon,
                              .name = "neon",
                              .gemm_scratch_bytes = gemm_scratch_bytes,
                              .gemm = gemm,
                              .attend = attend,
                              .index_scores = index_scores,
                              .weighted_sum = weighted_sum,
                              .delta_rule = delta_rule,
                              .rms_norm = rms_norm,
                              .rope = rope,
                              .softmax = softmax,
                              .sigmoid = sigmoid_row,
                              .scale = scale,
                              .add = add_row,
                              .convert = convert,
                              .stream_copy = stream_copy,
                              .stream_fence = stream_fence,
                              .encode = encode,
                              .decode = decode,
                              .multiply_in_registers = multiply_in_registers,
                              .greatest = greatest,
                              .weigh = weigh,
                              .exp_sum = exp_sum,
                              .count_weights = count_weights,
                              .pick_weights = pick_weights};

}  // namespace ferry::cpu
