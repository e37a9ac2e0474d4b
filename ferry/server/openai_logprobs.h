// Log probabilities as OpenAI's two routes shape them.
#pragma once

#include <cstddef>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <vector>

#include "ferry/generation_settings.h"
#include "ferry/text/tokenizer.h"

namespace ferry {

/// What a token is called: its text; "bytes:\xe6\xb8" where that is no whole character, as OpenAI
/// has it; "token_id:7" where it has none, or where `by_id`. Null: a model without a tokenizer.
std::string token_name(const Tokenizer* tokenizer, std::int32_t id, bool by_id);

/// For chat. Of tokens `first` to the last one of a choice.
nlohmann::ordered_json chat_logprobs(const Tokenizer* tokenizer,
                                     const Choice& choice,
                                     std::size_t first,
                                     bool by_id);

/// vLLM's `prompt_logprobs` of a choice: for each token of the prompt the most probable ones and
/// itself, by id; null for the first.
nlohmann::ordered_json prompt_logprobs(const Tokenizer* tokenizer,
                                       std::span<const std::int32_t> prompt,
                                       const Choice& choice);

/// For completions. Keeps where the tokens of one choice begin in its text, so that a stream pays
/// for each once. Borrows the tokenizer. Threads: one at a time.
class CompletionLogprobs {
 public:
  /// `skip_special`: whether the choice's text is without special tokens. `prompt`: the tokens that
  /// are shown before its own (echo).
  CompletionLogprobs(const Tokenizer* tokenizer,
                     bool by_id,
                     bool skip_special,
                     std::vector<std::int32_t> prompt);

  /// Of tokens `first` to the last one, those of the prompt counted. REQUIRES: the choice has log
  /// probabilities of all that.
  nlohmann::ordered_json json(const Choice& choice, std::size_t first);

 private:
  std::int32_t id_of(const Choice& choice, std::size_t i) const {
    return i < prompt_.size() ? prompt_[i] : choice.ids[i - prompt_.size()];
  }

  void place(const Choice& choice, std::size_t tokens);

  const Tokenizer* tokenizer_;
  bool by_id_;
  std::vector<std::int32_t> prompt_;
  std::unique_ptr<StreamDecoder> decoder_;
  std::vector<std::size_t> offsets_;
  std::size_t characters_ = 0;
};

}  // namespace ferry
