// `logit_bias`: {"id": bias} is added to the logits, as OpenAI's API defines it
// (https://platform.openai.com/docs/api-reference/completions/create): -100 to 100. The integers
// are the ids, ascending; the numbers are their biases.
#include <algorithm>
#include <cmath>

#include "ferry/core/error.h"
#include "ferry/logits_processor.h"

namespace ferry {

namespace {

constexpr const char* kLogitBias = "logit_bias";
constexpr float kMostBias = 100;

class LogitBias final : public LogitsProcessor {
 public:
  LogitBias(std::vector<std::int32_t> ids, std::vector<float> biases)
      : ids_(std::move(ids)), biases_(std::move(biases)) {}

  std::unique_ptr<LogitsProcessor> fork() const override {
    return std::make_unique<LogitBias>(*this);
  }

  void apply(std::span<float> logits, const TokenHistory& /*history*/) const override {
    for (std::size_t i = 0; i < ids_.size(); ++i)
      logits[static_cast<std::size_t>(ids_[i])] += biases_[i];
  }

 private:
  std::vector<std::int32_t> ids_;
  std::vector<float> biases_;
};

void read_bias(const RequestMembers& members, ProcessorOptions& options) {
  auto biases = members.numbers_by_id(kLogitBias);
  if (!biases) return;
  std::sort(biases->begin(), biases->end());
  options.integers.clear();
  options.numbers.clear();
  for (const auto& [id, bias] : *biases) {
    if (!(bias >= -kMostBias && bias <= kMostBias))
      fail<ConfigError>("\"{}\" of token id {} must be {} to {}, not {}",
                        kLogitBias,
                        id,
                        -kMostBias,
                        kMostBias,
                        bias);
    options.integers.push_back(id);
    options.numbers.push_back(static_cast<float>(bias));
  }
}

void check_bias(const ProcessorOptions& options,
                const Request& /*request*/,
                const ProcessorContext& model) {
  if (options.integers.size() != options.numbers.size())
    fail<ConfigError>("{} takes one bias for each token id", kLogitBias);
  check_ids(options.integers, kLogitBias, model.vocab);
  for (const float bias : options.numbers)
    if (!(std::abs(bias) <= kMostBias))
      fail<ConfigError>(
          "{} {} is out of range: it must be {} to {}", kLogitBias, bias, -kMostBias, kMostBias);
}

std::unique_ptr<LogitsProcessor> make_bias(const ProcessorOptions& options,
                                           const Request& /*request*/,
                                           const ProcessorContext& /*model*/) {
  return std::make_unique<LogitBias>(options.integers, options.numbers);
}

}  // namespace

const ProcessorKind& logit_bias_processor() {
  static const ProcessorKind kind{
      .name = "logit_bias", .read = read_bias, .check = check_bias, .make = make_bias};
  return kind;
}

}  // namespace ferry
