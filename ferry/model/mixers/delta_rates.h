// How fast a head of a gated delta net forgets, for one token. Made of additions, multiplications
// and divisions of doubles alone: libm's functions follow the processor.
#pragma once

#include <cstdint>

namespace ferry {

/// e^x; 0 below -200 and e^200 above 200, which no f32 can tell apart from the truth.
double exact_exp(double x);

/// ln(1 + e^x).
double softplus(double x);

/// By what the state is multiplied: e^(-rate * softplus(x)).
float delta_decay(double rate, double x);

}  // namespace ferry
