#include "ferry/model/mixers/delta_rates.h"

#include <cmath>

namespace ferry {

namespace {

constexpr double kLn2 = 0x1.62e42fefa39efp-1;

/// REQUIRES: x is positive, finite and normal.
double natural_log(double x) {
  int exponent = 0;
  double mantissa = std::frexp(x, &exponent);
  if (mantissa < 0.70710678118654752) {
    mantissa *= 2;
    --exponent;
  }
  // ln((1 + s) / (1 - s)) = 2 (s + s^3/3 + ...), and |s| < 0.172.
  const double s = (mantissa - 1) / (mantissa + 1);
  const double square = s * s;
  double sum = 0;
  for (int n = 21; n >= 1; n -= 2) sum = sum * square + 1.0 / n;
  return exponent * kLn2 + 2 * s * sum;
}

}  // namespace

double exact_exp(double x) {
  constexpr double kMost = 200;
  constexpr double kLn2High = 0x1.62e42feep-1;  // 32 bits: n times it is exact
  constexpr double kLn2Low = 0x1.a39ef35793c76p-33;
  if (std::isnan(x)) return x;
  if (x < -kMost) return 0;
  if (x > kMost) x = kMost;
  const double n = std::floor(x / kLn2 + 0.5);
  const double r = (x - n * kLn2High) - n * kLn2Low;
  double sum = 1;
  for (int i = 14; i >= 1; --i) sum = sum * r / i + 1;
  return std::ldexp(sum, static_cast<int>(n));
}

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
