#include "ferry/model/rope.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

#include "ferry/core/error.h"
#include "ferry/core/portable_math.h"
#include "ferry/kernels/kernels.h"

namespace ferry {

namespace {

constexpr double kTwoPi = 2 * std::numbers::pi;

/// theta^(2i/dim).
std::vector<float> periods(const RopeOptions& options) {
  std::vector<float> result;
  for (int i = 0; i < options.dim / 2; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(options.dim);
    result.push_back(static_cast<float>(power(
        static_cast<double>(static_cast<float>(options.theta)), static_cast<double>(exponent))));
  }
  return result;
}

float llama3_frequency(const RopeOptions& options, float frequency) {
  const auto factor = static_cast<float>(options.factor);
  const float wavelength = static_cast<float>(kTwoPi) / frequency;
  const float turns = static_cast<float>(options.original_positions) / wavelength;
  if (wavelength > static_cast<float>(options.original_positions / options.low_turns))
    return frequency / factor;
  const bool no_transition = options.low_turns == options.high_turns;
  if (wavelength < static_cast<float>(options.original_positions / options.high_turns) ||
      no_transition)
    return frequency;
  const float smooth = (turns - static_cast<float>(options.low_turns)) /
                       static_cast<float>(options.high_turns - options.low_turns);
  return (1.0F - smooth) * frequency / factor + smooth * frequency;
}

/// The pair (a fraction between pairs) that makes so many turns within the original positions.
double pair_with_turns(const RopeOptions& o, double turns) {
  return o.dim * natural_log(o.original_positions / (turns * kTwoPi)) / (2 * natural_log(o.theta));
}

std::vector<float> yarn_frequencies(const RopeOptions& options) {
  double low = pair_with_turns(options, options.high_turns);
  double high = pair_with_turns(options, options.low_turns);
  if (options.whole_pairs) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, options.dim - 1.0);
  if (low == high) high += 0.001;  // as transformers keeps the slope finite
  std::vector<float> result = periods(options);
  float pair = 0;
  for (float& x : result) {
    const float kept = 1.0F / x;
    const float divided = 1.0F / (static_cast<float>(options.factor) * x);
    const float ramp = (pair++ - static_cast<float>(low)) / static_cast<float>(high - low);
    const float keep = 1.0F - std::clamp(ramp, 0.0F, 1.0F);
    x = divided * (1.0F - keep) + kept * keep;
  }
  return result;
}

}  // namespace

double yarn_mscale(double factor, double mscale) {
  return factor <= 1 ? 1.0 : 0.1 * mscale * natural_log(factor) + 1.0;
}

std::vector<float> rope_frequencies(const RopeOptions& options) {
  if (options.scaling == RopeScaling::yarn) return yarn_frequencies(options);
  std::vector<float> result = periods(options);
  for (float& x : result) {
    x = 1.0F / x;
    if (options.scaling == RopeScaling::linear) x /= static_cast<float>(options.factor);
    if (options.scaling == RopeScaling::llama3) x = llama3_frequency(options, x);
  }
  return result;
}

Rope::Rope(const RopeOptions& options)
    : options_(options), frequencies_(rope_frequencies(options)) {
  FERRY_CHECK(options.dim >= 2 && options.dim % 2 == 0 && options.dim <= kMaxDim,
              "a rotary embedding of {} elements",
              options.dim);
}

void Rope::angles(std::int32_t position, float* cos, float* sin) const {
  const auto magnitude = static_cast<float>(options_.magnitude);
  for (std::size_t i = 0; i < frequencies_.size(); ++i) {
    // The angle is rounded to f32 before its cosine is taken, as transformers does.
    const float angle = static_cast<float>(position) * frequencies_[i];
    const CosAndSin exact = cos_and_sin(static_cast<double>(angle));
    cos[i] = static_cast<float>(exact.cos) * magnitude;
    sin[i] = static_cast<float>(exact.sin) * magnitude;
  }
}

void Rope::turn(const Kernels& kernels, float* head, const float* cos, const float* sin) const {
  if (options_.interleaved) {
    std::array<float, kMaxDim / 2> odd;  // NOLINT(*-member-init): written before it is read
    const std::size_t half = frequencies_.size();
    for (std::size_t i = 0; i < half; ++i) {
      odd[i] = head[2 * i + 1];
      head[i] = head[2 * i];
    }
    std::copy_n(odd.begin(), half, head + half);
  }
  kernels.rope(head, cos, sin, options_.dim);
}

}  // namespace ferry
