// Functions of doubles that give the same bits on every machine, since they are made of additions,
// multiplications and divisions alone: libm's follow the processor. Pure.
#pragma once

namespace ferry {

/// ln x; of what is not positive and finite, what IEEE 754 says.
double natural_log(double x) noexcept;

/// e^x; 0 below -200 and e^200 above 200, which no f32 can tell apart from the truth.
double exact_exp(double x) noexcept;

/// x^y, to within some units in the last place; for x that is not positive and finite, what IEEE
/// 754 says.
double power(double x, double y) noexcept;

struct CosAndSin {
  double cos;
  double sin;
};

/// Of an angle in radians, to within two units of 2^-53. REQUIRES: that it is an f32's value, its
/// magnitude at most 2^31; beyond that, and for what is no number, both are NaN.
CosAndSin cos_and_sin(double angle) noexcept;

}  // namespace ferry
