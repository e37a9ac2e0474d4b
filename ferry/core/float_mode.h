// How this thread rounds and what it does with denormals: MXCSR on x86-64, FPCR on 64-bit ARM.
#pragma once

#include <cstdint>

namespace ferry {

/// Round to nearest even, keep denormals, trap nothing: what a new thread of C++ has.
std::uint32_t default_float_mode() noexcept;

std::uint32_t float_mode() noexcept;
void set_float_mode(std::uint32_t mode) noexcept;

/// The mode with what the numerics contract asks for (docs/numerics.md, "Denormals"): they are
/// zeros as operands, and become zeros as results.
std::uint32_t with_flushing(std::uint32_t mode) noexcept;

/// Whether a result of which only rounding makes 2^-126 is that, as x86 has it and as ARM has it
/// with FEAT_AFP; else it is 0.
bool flushes_after_rounding() noexcept;

}  // namespace ferry
