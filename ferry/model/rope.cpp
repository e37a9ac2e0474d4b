#include "ferry/model/rope.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "ferry/core/error.h"
#include "ferry/kernels/kernels.h"

namespace ferry {

std::vector<float> rope_frequencies(const RopeOptions& options) {
  std::vector<float> result;
  for (int i = 0; i < options.dim / 2; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(options.dim);
    const auto power = static_cast<float>(std::pow(
        static_cast<double>(static_cast<float>(options.theta)), static_cast<double>(exponent)));
    result.push_back(1.0F / power);
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
  for (std::size_t i = 0; i < frequencies_.size(); ++i) {
    // The angle is rounded to f32 before its cosine is taken, as transformers does.
    const float angle = static_cast<float>(position) * frequencies_[i];
    cos[i] = static_cast<float>(std::cos(static_cast<double>(angle)));
    sin[i] = static_cast<float>(std::sin(static_cast<double>(angle)));
  }
}

void Rope::turn(float* head, const float* cos, const float* sin) const {
  if (options_.interleaved) {
    std::array<float, kMaxDim / 2> odd;  // NOLINT(*-member-init): written before it is read
    const std::size_t half = frequencies_.size();
    for (std::size_t i = 0; i < half; ++i) {
      odd[i] = head[2 * i + 1];
      head[i] = head[2 * i];
    }
    std::copy_n(odd.begin(), half, head + half);
  }
  kernels().rope(head, cos, sin, options_.dim);
}

}  // namespace ferry
