#include "ferry/core/portable_math.h"

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace ferry {

namespace {

constexpr double kLn2 = 0x1.62e42fefa39efp-1;

}  // namespace

/// With x = 2^e m, m near 1: e ln 2 + 2 artanh((m - 1) / (m + 1)), by its series.
double natural_log(double x) noexcept {
  constexpr double kRootOfTwo = 0x1.6a09e667f3bcdp+0;
  constexpr int kDenormalsUp = 54;
  if (!(x > 0) || std::isinf(x)) return std::log(x);  // an infinity or a NaN
  const bool is_denormal = x < std::numeric_limits<double>::min();
  const auto bits = std::bit_cast<std::uint64_t>(is_denormal ? std::ldexp(x, kDenormalsUp) : x);
  auto exponent = static_cast<int>(bits >> 52) - 1023 - (is_denormal ? kDenormalsUp : 0);
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

double power(double x, double y) noexcept {
  if (!(x > 0) || std::isinf(x)) return std::pow(x, y);  // of 0, infinity and NaN it is exact
  return exact_exp(y * natural_log(x));
}

/// The angle less n quarter turns, n a whole number, is done with pi / 2 in four parts of 22 bits:
/// n times a part is exact, and so are the differences with the first two, as an f32 has 24 bits.
/// What the third difference rounds away is kept. Then the Taylor series.
CosAndSin cos_and_sin(double angle) noexcept {
  constexpr double kMost = 0x1p31;
  constexpr double kQuarter[] = {0x1.921fb0p+0, 0x1.5110b0p-22, 0x1.184698p-44, 0x1.3198a0p-69};
  if (!(std::abs(angle) <= kMost))
    return {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::quiet_NaN()};
  const double n = std::floor(angle / (kQuarter[0] + kQuarter[1]) + 0.5);
  const double most = (angle - n * kQuarter[0]) - n * kQuarter[1];
  const double third = n * kQuarter[2];
  const double r = most - third;
  const double rest = ((most - r) - third) - n * kQuarter[3];

  double cos_series = 1;
  double sin_series = 1;
  for (int i = 18; i >= 2; i -= 2) {
    cos_series = 1 - cos_series * (r * r) * (1.0 / (i * (i - 1)));
    sin_series = 1 - sin_series * (r * r) * (1.0 / (i * (i + 1)));
  }
  const double sin_r = sin_series * r;
  const double cos = cos_series - rest * sin_r;
  const double sin = sin_r + rest * cos_series;
  switch (static_cast<std::int64_t>(n) & 3) {
    case 0:
      return {cos, sin};
    case 1:
      return {-sin, cos};
    case 2:
      return {-cos, -sin};
    default:
      return {sin, -cos};
  }
}

}  // namespace ferry
