// What the instruction-set files share with the registry. Included by files compiled with -m flags,
// so it declares and never defines: an inline function here would be linked once, perhaps in its
// AVX-512 copy, and called by everybody.
#pragma once

#include <cstddef>

#include "ferry/kernels/kernels.h"

namespace ferry::cpu {

extern const Kernels kScalar;
#if defined(__x86_64__)
extern const Kernels kAvx2;
extern const Kernels kAvx512;

/// The avx2 table with these is avx2_vnni's; weights that meet no int8 rows they leave to kAvx2.
void avx2_vnni_gemm(const GemmArgs& args);
std::uint64_t avx2_vnni_multiply_in_registers(WeightType weights, std::int64_t rounds);

/// With VNNI the avx512 table has these; weights that meet no int8 rows they leave to kAvx512.
void vnni_gemm(const GemmArgs& args);
std::uint64_t vnni_multiply_in_registers(WeightType weights, std::int64_t rounds);

/// The avx512 table with VNNI and these. REQUIRES: the process may use tiles.
const Kernels& amx_table();
void amx_gemm(const GemmArgs& args);
std::size_t amx_gemm_scratch_bytes(WeightType weights, std::int64_t k);
std::uint64_t amx_multiply_in_registers(WeightType weights, std::int64_t rounds);
#elif defined(__aarch64__)
extern const Kernels kNeon;

/// With SDOT the neon table has these; weights that meet no int8 rows they leave to kNeon.
void sdot_gemm(const GemmArgs& args);
std::uint64_t sdot_multiply_in_registers(WeightType weights, std::int64_t rounds);

/// Likewise with SMMLA.
void smmla_gemm(const GemmArgs& args);
std::uint64_t smmla_multiply_in_registers(WeightType weights, std::int64_t rounds);
#endif

/// In the numeric class `fast`, where the processor multiplies pairs of bf16: of weights that
/// multiplies_bf16() names.
void dot_gemm(const GemmArgs& args);
std::uint64_t dot_multiply_in_registers(std::int64_t rounds);

/// Start of the call's scratch, rounded up to a cache line (gemm_scratch_bytes counts that in).
/// Asserts that `needed` bytes follow.
std::byte* aligned_scratch(const GemmArgs& args, std::size_t needed) noexcept;

}  // namespace ferry::cpu
