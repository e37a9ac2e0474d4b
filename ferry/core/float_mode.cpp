#include "ferry/core/float_mode.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#else
#error "how does this processor flush denormals? (docs/numerics.md)"
#endif

namespace ferry {

#if defined(__x86_64__)

std::uint32_t default_float_mode() noexcept { return 0x1f80; }  // all exceptions masked

std::uint32_t float_mode() noexcept { return _mm_getcsr(); }

void set_float_mode(std::uint32_t mode) noexcept { _mm_setcsr(mode); }

std::uint32_t with_flushing(std::uint32_t mode) noexcept {
  return mode | 0x8040;  // flush to zero, denormals are zeros
}

bool flushes_after_rounding() noexcept { return true; }

#else

std::uint32_t default_float_mode() noexcept { return 0; }

std::uint32_t float_mode() noexcept {
  std::uint64_t mode;
  asm volatile("mrs %0, fpcr" : "=r"(mode));
  return static_cast<std::uint32_t>(mode);
}

void set_float_mode(std::uint32_t mode) noexcept {
  asm volatile("msr fpcr, %0" : : "r"(std::uint64_t{mode}) : "memory");
}

/// FZ alone flushes operands, and results before they are rounded. With AH it flushes results, and
/// after rounding; then FIZ flushes operands.
std::uint32_t with_flushing(std::uint32_t mode) noexcept {
  constexpr std::uint32_t kFlushToZero = 1U << 24;         // FZ
  constexpr std::uint32_t kAsX86Does = 1U << 0 | 1U << 1;  // FIZ, AH
  return mode | kFlushToZero | (flushes_after_rounding() ? kAsX86Does : 0);
}

/// FEAT_AFP, by the register in which Linux shows it (it answers for processes that read it, where
/// CPUID among the hardware's capabilities says so).
bool flushes_after_rounding() noexcept {
  static const bool has_it = [] {
    if ((getauxval(AT_HWCAP) & HWCAP_CPUID) == 0) return false;
    std::uint64_t features;
    asm("mrs %0, S3_0_C0_C7_1" : "=r"(features));  // ID_AA64MMFR1_EL1
    return (features >> 44 & 15) != 0;             // AFP
  }();
  return has_it;
}

#endif

}  // namespace ferry
