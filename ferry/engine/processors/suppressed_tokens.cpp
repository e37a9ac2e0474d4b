// `suppress_tokens`: these tokens are never chosen, as Hugging Face's generation config defines it
// (SuppressTokensLogitsProcessor of transformers). The integers are the ids, ascending.
#include <algorithm>

#include "ferry/core/error.h"
#include "ferry/logits_processor.h"

namespace ferry {

namespace {

constexpr const char* kSuppressed = "suppress_tokens";

class SuppressedTokens final : public LogitsProcessor {
 public:
  explicit SuppressedTokens(std::vector<std::int32_t> ids) : ids_(std::move(ids)) {}

  std::unique_ptr<LogitsProcessor> fork() const override {
    return std::make_unique<SuppressedTokens>(*this);
  }

  void apply(std::span<float> logits, const TokenHistory& /*history*/) const override {
    for (const std::int32_t id : ids_) logits[static_cast<std::size_t>(id)] = kBanned;
  }

 private:
  std::vector<std::int32_t> ids_;
};

void read_suppressed(const RequestMembers& members, ProcessorOptions& options) {
  auto ids = members.token_ids(kSuppressed);
  if (!ids) return;
  std::sort(ids->begin(), ids->end());
  ids->erase(std::unique(ids->begin(), ids->end()), ids->end());
  options.integers = std::move(*ids);
}

void check_suppressed(const ProcessorOptions& options,
                      const Request& /*request*/,
                      const ProcessorContext& model) {
  if (!options.numbers.empty())
    fail<ConfigError>("{} takes a list of token ids and nothing else", kSuppressed);
  check_ids(options.integers, kSuppressed, model.vocab);
}

std::unique_ptr<LogitsProcessor> make_suppressed(const ProcessorOptions& options,
                                                 const Request& /*request*/,
                                                 const ProcessorContext& /*model*/) {
  return std::make_unique<SuppressedTokens>(options.integers);
}

}  // namespace

const ProcessorKind& suppressed_tokens_processor() {
  static const ProcessorKind kind{.name = "suppressed_tokens",
                                  .read = read_suppressed,
                                  .check = check_suppressed,
                                  .make = make_suppressed};
  return kind;
}

}  // namespace ferry
