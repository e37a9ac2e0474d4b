#include "ferry/server/openai_logprobs.h"

#include <fmt/core.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "ferry/text/text_stream.h"
#include "ferry/text/utf8.h"

namespace ferry {

using Json = nlohmann::ordered_json;

namespace {

std::size_t characters_in(std::string_view text) {
  return static_cast<std::size_t>(std::count_if(text.begin(), text.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xc0) != 0x80;
  }));
}

Json token_json(const Tokenizer* tokenizer, std::int32_t id, float logprob, bool by_id) {
  Json bytes = nullptr;
  if (tokenizer != nullptr && tokenizer->has_token(id)) {
    bytes = Json::array();
    for (const char c : tokenizer->token_bytes(id)) bytes.push_back(static_cast<unsigned char>(c));
  }
  const std::string name = by_id ? fmt::format("token_id:{}", id) : token_text(tokenizer, id);
  return {{"token", name}, {"logprob", logprob}, {"bytes", std::move(bytes)}};
}

}  // namespace

std::string token_name(const Tokenizer* tokenizer, std::int32_t id, bool by_id) {
  const std::string text = by_id ? "" : token_text(tokenizer, id);
  if (text.empty()) return fmt::format("token_id:{}", id);
  const std::string bytes(tokenizer->token_bytes(id));
  // Text of a special token is no bytes of its own.
  if (bytes.empty() || repair_utf8(bytes) == bytes) return text;
  std::string name = "bytes:";
  for (const char c : bytes) name += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
  return name;
}

Json chat_logprobs(const Tokenizer* tokenizer,
                   const Choice& choice,
                   std::size_t first,
                   bool by_id) {
  Json content = Json::array();
  for (std::size_t i = first; i < choice.logprobs.size(); ++i) {
    Json token = token_json(tokenizer, choice.ids[i], choice.logprobs[i].chosen, by_id);
    token["top_logprobs"] = Json::array();
    for (const TokenLogprob& t : choice.logprobs[i].top)
      token["top_logprobs"].push_back(token_json(tokenizer, t.id, t.logprob, by_id));
    content.push_back(std::move(token));
  }
  return {{"content", std::move(content)}};
}

Json prompt_logprobs(const Tokenizer* tokenizer,
                     std::span<const std::int32_t> prompt,
                     const Choice& choice) {
  Json all = Json::array({nullptr});
  for (std::size_t i = 0; i < choice.prompt_logprobs.size(); ++i) {
    const Logprobs& logprobs = choice.prompt_logprobs[i];
    const auto entry = [&](std::int32_t id, float logprob, Json rank) {
      return Json{{"logprob", logprob},
                  {"rank", std::move(rank)},
                  {"decoded_token", token_text(tokenizer, id)}};
    };
    Json tokens = Json::object();
    for (std::size_t rank = 0; rank < logprobs.top.size(); ++rank) {
      const TokenLogprob& t = logprobs.top[rank];
      tokens[std::to_string(t.id)] = entry(t.id, t.logprob, rank + 1);
    }
    const std::int32_t id = prompt[i + 1];
    if (!tokens.contains(std::to_string(id)))  // how many are above it nobody has counted
      tokens[std::to_string(id)] = entry(id, logprobs.chosen, nullptr);
    all.push_back(std::move(tokens));
  }
  return all;
}

CompletionLogprobs::CompletionLogprobs(const Tokenizer* tokenizer,
                                       bool by_id,
                                       bool skip_special,
                                       std::vector<std::int32_t> prompt)
    : tokenizer_(tokenizer), by_id_(by_id), prompt_(std::move(prompt)) {
  if (tokenizer != nullptr) decoder_ = std::make_unique<StreamDecoder>(*tokenizer, skip_special);
}

/// In characters, as clients count. Tokens that make one character together begin where it does.
void CompletionLogprobs::place(const Choice& choice, std::size_t tokens) {
  while (offsets_.size() < tokens) {
    const std::int32_t id = id_of(choice, offsets_.size());
    const std::string text =
        decoder_ && tokenizer_->has_token(id) ? decoder_->put(id) : std::string();
    // What the tokens before have left of a character stands before this one's text.
    const std::string own = text.empty() ? "" : token_text(tokenizer_, id);
    const std::size_t before = text.ends_with(own) ? text.size() - own.size() : 0;
    offsets_.push_back(characters_ + (own.empty() ? 0 : characters_in(text.substr(0, before))));
    characters_ += characters_in(text);
  }
}

Json CompletionLogprobs::json(const Choice& choice, std::size_t first) {
  const std::size_t end = prompt_.size() + choice.logprobs.size();
  place(choice, end);
  Json tokens = Json::array(), logprobs = Json::array(), top = Json::array(),
       offsets = Json::array();
  for (std::size_t i = first; i < end; ++i) {
    tokens.push_back(token_name(tokenizer_, id_of(choice, i), by_id_));
    offsets.push_back(offsets_[i]);
    if (i == 0 && !prompt_.empty()) {  // nothing stands before it
      logprobs.push_back(nullptr);
      top.push_back(nullptr);
      continue;
    }
    const Logprobs& l =
        i < prompt_.size() ? choice.prompt_logprobs.at(i - 1) : choice.logprobs[i - prompt_.size()];
    logprobs.push_back(l.chosen);
    Json most = Json::object();
    for (const TokenLogprob& t : l.top) {
      std::string name = token_name(tokenizer_, t.id, by_id_);
      if (most.contains(name)) name = token_name(tokenizer_, t.id, /*by_id=*/true);
      most[name] = t.logprob;
    }
    top.push_back(std::move(most));
  }
  return {{"tokens", std::move(tokens)},
          {"token_logprobs", std::move(logprobs)},
          {"top_logprobs", std::move(top)},
          {"text_offset", std::move(offsets)}};
}

}  // namespace ferry
