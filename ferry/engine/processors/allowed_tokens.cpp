// `allowed_token_ids`: only these tokens are chosen, as vLLM defines it ("apply_allowed_token_ids"
// of vllm/v1/sample/sampler.py). The integers are the ids, ascending.
#include <algorithm>

#include "ferry/core/error.h"
#include "ferry/logits_processor.h"

namespace ferry {

namespace {

constexpr const char* kAllowed = "allowed_token_ids";

class AllowedTokens final : public LogitsProcessor {
 public:
  explicit AllowedTokens(std::vector<std::int32_t> ids) : ids_(std::move(ids)) {}

  std::unique_ptr<LogitsProcessor> fork() const override {
    return std::make_unique<AllowedTokens>(*this);
  }

  void apply(std::span<float> logits, const TokenHistory& /*history*/) const override {
    std::size_t next = 0;  // the first id that is not known to be allowed
    for (const std::int32_t id : ids_) {
      const auto allowed = static_cast<std::size_t>(id);
      std::fill(logits.begin() + static_cast<std::ptrdiff_t>(next),
                logits.begin() + static_cast<std::ptrdiff_t>(allowed),
                kBanned);
      next = allowed + 1;
    }
    std::fill(logits.begin() + static_cast<std::ptrdiff_t>(next), logits.end(), kBanned);
  }

 private:
  std::vector<std::int32_t> ids_;
};

void read_allowed(const RequestMembers& members, ProcessorOptions& options) {
  auto ids = members.token_ids(kAllowed);
  if (!ids) return;
  if (ids->empty()) fail<ConfigError>("\"{}\" is an empty list, which allows no token", kAllowed);
  std::sort(ids->begin(), ids->end());
  ids->erase(std::unique(ids->begin(), ids->end()), ids->end());
  options.integers = std::move(*ids);
}

void check_allowed(const ProcessorOptions& options,
                   const Request& /*request*/,
                   const ProcessorContext& model) {
  if (options.integers.empty() || !options.numbers.empty())
    fail<ConfigError>("{} takes a list of token ids and nothing else", kAllowed);
  check_ids(options.integers, kAllowed, model.vocab);
}

std::unique_ptr<LogitsProcessor> make_allowed(const ProcessorOptions& options,
                                              const Request& /*request*/,
                                              const ProcessorContext& /*model*/) {
  return std::make_unique<AllowedTokens>(options.integers);
}

}  // namespace

const ProcessorKind& allowed_tokens_processor() {
  static const ProcessorKind kind{
      .name = "allowed_tokens", .read = read_allowed, .check = check_allowed, .make = make_allowed};
  return kind;
}

}  // namespace ferry
