// `min_tokens` (vLLM), `min_new_tokens` (SGLang, Hugging Face): no stop id is chosen before so many
// tokens have been generated (MinTokensLogitsProcessor of vllm/v1/sample/logits_processor). The
// integer is their number. Stop strings are the server's affair and end a request all the same.
#include "ferry/core/error.h"
#include "ferry/engine/request.h"
#include "ferry/logits_processor.h"

namespace ferry {

namespace {

class MinTokens final : public LogitsProcessor {
 public:
  MinTokens(std::size_t tokens, std::vector<std::int32_t> stop_ids)
      : tokens_(tokens), stop_ids_(std::move(stop_ids)) {}

  std::unique_ptr<LogitsProcessor> fork() const override {
    return std::make_unique<MinTokens>(*this);
  }

  void apply(std::span<float> logits, const TokenHistory& history) const override {
    if (history.generated.size() >= tokens_) return;
    for (const std::int32_t id : stop_ids_) {
      // Stop ids are compared with tokens everywhere else, so that one outside the vocabulary is no
      // error: it never comes.
      if (id >= 0 && static_cast<std::size_t>(id) < logits.size())
        logits[static_cast<std::size_t>(id)] = kBanned;
    }
  }

 private:
  std::size_t tokens_;
  std::vector<std::int32_t> stop_ids_;
};

void read_min_tokens(const RequestMembers& members, ProcessorOptions& options) {
  for (const char* name : {"min_tokens", "min_new_tokens"}) {
    const auto tokens = members.integer(name);
    if (!tokens) continue;
    if (*tokens < 0 || *tokens > std::numeric_limits<std::int32_t>::max())
      fail<ConfigError>("\"{}\" must be 0 or more, not {}", name, *tokens);
    options.integers.clear();
    if (*tokens > 0) options.integers.push_back(static_cast<std::int32_t>(*tokens));
  }
}

void check_min_tokens(const ProcessorOptions& options,
                      const Request& request,
                      const ProcessorContext& /*model*/) {
  if (options.integers.size() != 1 || !options.numbers.empty() || options.integers[0] < 0)
    fail<ConfigError>("min_tokens takes one number, 0 or more");
  if (options.integers[0] > request.max_new_tokens) {
    fail<ConfigError>("at least {} new tokens asked for, but at most {}: lower min_tokens",
                      options.integers[0],
                      request.max_new_tokens);
  }
}

std::unique_ptr<LogitsProcessor> make_min_tokens(const ProcessorOptions& options,
                                                 const Request& request,
                                                 const ProcessorContext& /*model*/) {
  return std::make_unique<MinTokens>(static_cast<std::size_t>(options.integers[0]),
                                     request.stop_ids);
}

}  // namespace

const ProcessorKind& min_tokens_processor() {
  static const ProcessorKind kind{.name = "min_tokens",
                                  .read = read_min_tokens,
                                  .check = check_min_tokens,
                                  .make = make_min_tokens};
  return kind;
}

}  // namespace ferry
