// `repetition_penalty`, `frequency_penalty`, `presence_penalty`, in this order, as vLLM applies
// them (apply_penalties of vllm/model_executor/layers/utils.py):
//   repetition r (Keskar et al., CTRL, https://arxiv.org/abs/1909.05858; as transformers has it):
//     of a token in the prompt or among the generated ones, logit / r where it is positive, else
//     logit * r
//   frequency f and presence p (OpenAI, https://platform.openai.com/docs/api-reference): of a
//     generated token, logit - f * (times that it was generated) - p
// The numbers are presence, frequency, repetition. All sums are of f32, in this order.
#include <algorithm>
#include <array>
#include <cmath>

#include "ferry/core/error.h"
#include "ferry/engine/request.h"
#include "ferry/logits_processor.h"

namespace ferry {

namespace {

struct Penalty {
  const char* name;
  float neutral;
  float least;
  float most;
};

/// In the order of the numbers. Presence and frequency are bounded as OpenAI and vLLM have it;
/// both ask for a positive repetition penalty, and far from 1 it only overflows.
constexpr std::array<Penalty, 3> kPenalties = {{{"presence_penalty", 0, -2, 2},
                                                {"frequency_penalty", 0, -2, 2},
                                                {"repetition_penalty", 1, 0.01F, 100}}};

constexpr float kGreatestLogit = std::numeric_limits<float>::max();

/// Tokens that have been seen, with how often they were generated, by ascending id: one list, so
/// that a fork is a copy and the order in which tokens came leaves no trace.
class Penalties final : public LogitsProcessor {
 public:
  Penalties(const std::vector<float>& numbers, const std::vector<std::int32_t>& prompt)
      : presence_(numbers[0]), frequency_(numbers[1]), repetition_(numbers[2]) {
    if (repetition_ == 1) return;  // the others leave the prompt alone
    std::vector<std::int32_t> ids = prompt;
    std::sort(ids.begin(), ids.end());
    ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
    for (const std::int32_t id : ids) seen_.push_back({.id = id, .in_prompt = true});
  }

  std::unique_ptr<LogitsProcessor> fork() const override {
    return std::make_unique<Penalties>(*this);
  }

  void apply(std::span<float> logits, const TokenHistory& /*history*/) const override {
    for (const Seen& seen : seen_) {
      float& logit = logits[static_cast<std::size_t>(seen.id)];
      // Banned ones stay so, and what the model should not have said is for the sampler to name.
      if (!std::isfinite(logit)) continue;
      float x = logit > 0 ? logit / repetition_ : logit * repetition_;
      if (seen.times > 0) {
        x -= frequency_ * static_cast<float>(seen.times);
        x -= presence_;
      }
      logit = std::clamp(x, -kGreatestLogit, kGreatestLogit);
    }
  }

  void advance(std::int32_t token) override {
    const auto at = place_of(token);
    if (at != seen_.end() && at->id == token)
      ++at->times;
    else
      seen_.insert(at, {.id = token, .times = 1});
  }

  void roll_back(std::span<const std::int32_t> tokens) override {
    for (const std::int32_t token : tokens) {
      const auto at = place_of(token);
      FERRY_CHECK(at != seen_.end() && at->id == token && at->times > 0,
                  "token {} is taken back, but it was not generated",
                  token);
      if (--at->times == 0 && !at->in_prompt) seen_.erase(at);
    }
  }

 private:
  struct Seen {
    std::int32_t id = 0;
    std::uint32_t times = 0;  ///< generated
    bool in_prompt = false;
  };

  std::vector<Seen>::iterator place_of(std::int32_t token) {
    return std::lower_bound(
        seen_.begin(), seen_.end(), token, [](const Seen& seen, std::int32_t id) {
          return seen.id < id;
        });
  }

  float presence_;
  float frequency_;
  float repetition_;
  std::vector<Seen> seen_;
};

void read_penalties(const RequestMembers& members, ProcessorOptions& options) {
  std::array<float, kPenalties.size()> values{};
  bool effect = false;
  for (std::size_t i = 0; i < kPenalties.size(); ++i) {
    const Penalty& member = kPenalties[i];
    values[i] = options.numbers.empty() ? member.neutral : options.numbers.at(i);
    if (const auto given = members.number(member.name)) {
      if (!(*given >= member.least && *given <= member.most)) {
        fail<ConfigError>(
            "\"{}\" must be {} to {}, not {}", member.name, member.least, member.most, *given);
      }
      values[i] = static_cast<float>(*given);
    }
    effect = effect || values[i] != member.neutral;
  }
  options.numbers.clear();
  if (effect) options.numbers.assign(values.begin(), values.end());
}

void check_penalties(const ProcessorOptions& options,
                     const Request& /*request*/,
                     const ProcessorContext& /*model*/) {
  if (!options.integers.empty() || options.numbers.size() != kPenalties.size())
    fail<ConfigError>("penalties take three numbers: presence, frequency, repetition");
  for (std::size_t i = 0; i < kPenalties.size(); ++i) {
    const Penalty& member = kPenalties[i];
    if (!(options.numbers[i] >= member.least && options.numbers[i] <= member.most)) {
      fail<ConfigError>("{} {} is out of range: it must be {} to {}",
                        member.name,
                        options.numbers[i],
                        member.least,
                        member.most);
    }
  }
}

std::unique_ptr<LogitsProcessor> make_penalties(const ProcessorOptions& options,
                                                const Request& request,
                                                const ProcessorContext& /*model*/) {
  return std::make_unique<Penalties>(options.numbers, request.prompt);
}

}  // namespace

const ProcessorKind& penalties_processor() {
  static const ProcessorKind kind{.name = "penalties",
                                  .read = read_penalties,
                                  .check = check_penalties,
                                  .make = make_penalties};
  return kind;
}

}  // namespace ferry
