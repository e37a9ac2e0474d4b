#include "ferry/text/text_stream.h"

#include <algorithm>
#include <utility>

namespace ferry {

StopStrings::StopStrings(std::vector<std::string> strings, bool keep)
    : strings_(std::move(strings)), keep_(keep) {
  std::erase(strings_, "");
}

std::string StopStrings::put(std::string_view text) {
  if (found()) return {};
  held_ += text;
  std::size_t first = std::string::npos;
  for (const std::string& s : strings_) {
    const std::size_t at = held_.find(s);
    if (at < first) {
      first = at;
      match_ = s;
    }
  }
  if (found()) {
    std::string shown = held_.substr(0, first + (keep_ ? match_.size() : 0));
    held_.clear();
    return shown;
  }
  // The longest end of the text with which a stop string begins.
  std::size_t keep = 0;
  for (const std::string& s : strings_) {
    for (std::size_t n = std::min(s.size() - 1, held_.size()); n > keep; --n)
      if (std::string_view(held_).ends_with(std::string_view(s).substr(0, n))) keep = n;
  }
  std::string shown = held_.substr(0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
  return shown;
}

std::string StopStrings::finish() { return std::exchange(held_, {}); }

TextStream::TextStream(const Tokenizer* tokenizer, TextOptions options)
    : tokenizer_(tokenizer),
      options_(std::move(options)),
      stop_(options_.stop, options_.keep_stop) {
  if (tokenizer != nullptr) decoder_.emplace(*tokenizer, options_.skip_special);
}

std::string TextStream::put(std::int32_t token, bool last) {
  if (!decoder_) return {};
  const auto& silent = options_.silent_ids;
  const bool shown = !last || std::find(silent.begin(), silent.end(), token) == silent.end();
  std::string text = shown && tokenizer_->has_token(token) ? decoder_->put(token) : std::string();
  if (last) text += decoder_->finish();
  text = stop_.put(text);
  if (last) text += stop_.finish();
  return text;
}

std::string token_text(const Tokenizer* tokenizer, std::int32_t id) {
  if (tokenizer == nullptr || !tokenizer->has_token(id)) return {};
  const std::vector<std::int32_t> ids = {id};
  return tokenizer->decode(ids);
}

}  // namespace ferry
