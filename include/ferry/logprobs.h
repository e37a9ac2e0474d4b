// How probable the model finds tokens: for callers that asked for it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ferry/export.h"

namespace ferry {

inline constexpr int kMaxTopLogprobs = 20;
inline constexpr int kMaxLogprobIds = 128;

/// ln of a token's probability under the model: before logits processors, temperature and any cut.
struct TokenLogprob {
  std::int32_t id = 0;
  float logprob = 0;

  bool operator==(const TokenLogprob&) const = default;
};

struct Logprobs {
  float chosen = 0;                      ///< of the token that was chosen
  std::vector<TokenLogprob> top;         ///< the most probable first; ties: the lowest id
  std::vector<TokenLogprob> asked = {};  ///< of the ids that were asked for, in that order

  bool operator==(const Logprobs&) const = default;
};

/// Pure; the bits depend on the logits alone, whatever the machine. REQUIRES: finite logits or
/// -infinity, one of them finite; `chosen` and all of `asked` among them; top >= 0, of which there
/// are at most as many as logits.
FERRY_API Logprobs logprobs_of(std::span<const float> logits,
                               std::int32_t chosen,
                               int top,
                               std::span<const std::int32_t> asked = {});

}  // namespace ferry
