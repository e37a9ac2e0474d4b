#include "ferry/engine/prompt_pacer.h"

#include <algorithm>

namespace ferry {

namespace {

/// Of what a new step counts; small, since single steps are disturbed by whatever else runs.
constexpr double kNew = 0.1;
/// Allowed while nothing is known.
constexpr int kFirst = 64;

void blend(double& mean, double value) { mean = mean == 0 ? value : mean + kNew * (value - mean); }

}  // namespace

PromptPacer::PromptPacer(int most) : most_(most) {}

void PromptPacer::observe(int prompt_tokens, int decode_tokens, std::chrono::nanoseconds time) {
  const double seconds = std::chrono::duration<double>(time).count();
  if (prompt_tokens == 0) return blend(decode_s_, seconds);
  const double added = decode_tokens == 0 ? seconds : std::max(0.0, seconds - decode_s_);
  blend(token_s_, added / prompt_tokens);
}

int PromptPacer::tokens() const {
  const bool known = decode_s_ > 0 && token_s_ > 0;
  const double allowed = known ? (kSlowdown - 1) * decode_s_ / token_s_ : kFirst;
  const int least = std::min(kLeast, most_);
  return static_cast<int>(std::clamp<double>(allowed, least, most_));
}

}  // namespace ferry
