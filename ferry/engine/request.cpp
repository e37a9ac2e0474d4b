#include "ferry/engine/request.h"

#include <algorithm>

#include "ferry/core/error.h"
#include "ferry/engine/logits_chain.h"

namespace ferry {

std::size_t first_prompt_logprob(const Request& request) {
  return std::max<std::size_t>(1,
                               static_cast<std::size_t>(request.prompt_logprobs_from.value_or(0)));
}

std::int64_t most_reused(const Request& request, std::size_t generated) {
  // Logits of a token say how probable the next one is.
  const std::size_t known = request.prompt.size() + generated;
  const bool tells_prompt = request.prompt_logprobs_from && generated == 0;
  return static_cast<std::int64_t>(
      (tells_prompt ? std::min(first_prompt_logprob(request), known) : known) - 1);
}

int most_positions(const Request& request, int max_context) {
  const auto wanted = static_cast<std::int64_t>(request.prompt.size()) + request.max_new_tokens - 1;
  return static_cast<int>(std::min<std::int64_t>(wanted, max_context));
}

namespace {

void check_logprob_ids(const Request& request, int vocab) {
  const std::vector<std::int32_t>& ids = request.logprob_ids;
  if (ids.empty()) return;
  if (!request.top_logprobs)
    fail<ConfigError>("logprobs of {} token ids asked for, but none of the tokens", ids.size());
  if (ids.size() > kMaxLogprobIds)
    fail<ConfigError>(
        "logprobs of {} token ids asked for; at most {} are possible", ids.size(), kMaxLogprobIds);
  for (const std::int32_t id : ids) {
    if (id < 0 || id >= vocab)
      fail<ConfigError>(
          "logprobs of token id {} asked for, outside the vocabulary 0..{}", id, vocab - 1);
  }
}

}  // namespace

void check_request(const Request& request, const ProcessorContext& model, int max_context) {
  const int vocab = model.vocab;
  if (request.prompt.empty()) fail<ConfigError>("the prompt is empty; give at least one token");
  if (request.prompt.size() > static_cast<std::size_t>(max_context)) {
    fail<ConfigError>(
        "the prompt has {} tokens but the context holds {}; shorten the prompt or, where the model "
        "allows, raise --context-length",
        request.prompt.size(),
        max_context);
  }
  for (std::size_t i = 0; i < request.prompt.size(); ++i) {
    if (request.prompt[i] < 0 || request.prompt[i] >= vocab) {
      fail<ConfigError>("token id {} (number {} of the prompt) is outside the vocabulary 0..{}",
                        request.prompt[i],
                        i + 1,
                        vocab - 1);
    }
  }
  if (request.max_new_tokens < 1) {
    fail<ConfigError>("{} new tokens asked for; ask for at least 1 (--max-new-tokens)",
                      request.max_new_tokens);
  }
  if (request.stop_ids.size() > kMaxStopIds) {
    fail<ConfigError>(
        "{} stop ids given; at most {} are possible", request.stop_ids.size(), kMaxStopIds);
  }
  if (request.top_logprobs &&
      (*request.top_logprobs < 0 || *request.top_logprobs > kMaxTopLogprobs)) {
    fail<ConfigError>("logprobs of {} tokens asked for; 0 to {} are possible",
                      *request.top_logprobs,
                      kMaxTopLogprobs);
  }
  check_logprob_ids(request, vocab);
  if (request.prompt_logprobs_from) {
    if (!request.top_logprobs)
      fail<ConfigError>("logprobs of the prompt asked for, but none of the tokens behind it");
    if (*request.prompt_logprobs_from < 0)
      fail<ConfigError>(
          "logprobs of the prompt from position {} on asked for; begin with 0 or more",
          *request.prompt_logprobs_from);
  }
  check_sampling(request.sampling);
  check_processors(request, model);
}

}  // namespace ferry
