// Functions of doubles that give the same bits on every machine, since they are made of additions,
// multiplications and divisions alone: libm's follow the processor. Pure.
#pragma once

namespace ferry {

/// ln x. REQUIRES: x is positive, finite and not denormal.
double natural_log(double x) noexcept;

/// e^x; 0 below -200 and e^200 above 200, which no f32 can tell apart from the truth.
double exact_exp(double x) noexcept;

}  // namespace ferry
