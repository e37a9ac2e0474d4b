#include "ferry/model/mixers/delta_rates.h"

#include <cmath>

#include "ferry/core/portable_math.h"

namespace ferry {

double softplus(double x) {
  constexpr double kSame = 40;  // from here on ln(1 + e^x) is x, and below -40 it is e^x
  if (std::isnan(x) || x > kSame) return x;
  const double power = exact_exp(x);
  return x < -kSame ? power : natural_log(1 + power);
}

float delta_decay(double rate, double x) {
  return static_cast<float>(exact_exp(-rate * softplus(x)));
}

}  // namespace ferry
