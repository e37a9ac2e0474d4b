// Products with weights that meet int8 rows, and no other kernels: for files of instructions that
// make these faster in a table that has everything else. Included after vectors and integers,
// inside an anonymous namespace.

// clang-format off
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

/// Weights that meet no such rows go to `others`.
template <template <class> class BlockOf = FoursOfBlock>
void int8_row_gemm(const GemmArgs& args, const Kernels& others) {
  if (args.weights->type == WeightType::int8 || args.weights->type == WeightType::int4)
    int_gemm<BlockOf>(args);
  else if (is_byte_block(args.weights->type))
    byte_block_gemm(args);
  else
    others.gemm(args);
}
