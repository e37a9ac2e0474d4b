#include "ferry/core/portable_math.h"

#include <bit>
#include <cmath>
#include <cstdint>

namespace ferry {

namespace {

constexpr double kLn2 = 0x1.62e42fefa39efp-1;

}  // namespace

/// With x = 2^e m, m near 1: e ln 2 + 2 artanh((m - 1) / (m + 1)), by its series.
double natural_log(double x) noexcept {
  constexpr double kRootOfTwo = 0x1.6a09e667f3bcdp+0;
  const auto bits = std::bit_cast<std::uint64_t>(x);
  auto exponent = static_cast<int>(bits >> 52) - 1023;
  double m = std::bit_cast<double>((bits & 0xfffffffffffffULL) | (1023ULL << 52));
  if (m > kRootOfTwo) {
    m *= 0.5;
    ++exponent;
  }
  const double s = (m - 1) / (m + 1);
  double series = 0;
  for (int power = 21; power >= 1; power -= 2) series = series * (s * s) + 1.0 / power;
  return exponent * kLn2 + 2 * s * series;
}

double exact_exp(double x) noexcept {
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

}  // namespace ferry
