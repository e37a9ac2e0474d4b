// All kernels of an instruction set but the sampler's, each building on those before it: what is
// added here every instruction set has. Included after its vectors and integers, inside an
// anonymous namespace.

// clang-format off
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
#include "ferry/kernels/cpu/byte_blocks.inl"
#include "ferry/kernels/cpu/gemm_byte_blocks.inl"
#include "ferry/kernels/cpu/gemm.inl"
#include "ferry/kernels/cpu/peaks.inl"
// clang-format on
