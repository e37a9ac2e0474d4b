#include "ferry/text/added_tokens.h"

#include <algorithm>

#include "ferry/text/utf8.h"

namespace ferry {

namespace {

std::size_t strip_left(std::string_view text, std::size_t at, std::size_t limit) {
  while (at > limit) {
    const char32_t c = char_before(text, at);
    if (!is_white_space(c)) break;
    do {
      --at;
    } while ((static_cast<unsigned char>(text[at]) & 0xC0) == 0x80);
  }
  return at;
}

std::size_t strip_right(std::string_view text, std::size_t at) {
  while (at < text.size() && is_white_space(char_at(text, at))) at += utf8_length(text[at]);
  return at;
}

}  // namespace

void AddedTokenMatcher::add(const AddedToken& token, std::string_view text) {
  std::int32_t at = 0;
  for (const char c : text) {
    const auto [it, fresh] = nodes_[static_cast<std::size_t>(at)].next.emplace(
        c, static_cast<std::int32_t>(nodes_.size()));
    at = it->second;
    if (fresh) nodes_.emplace_back();
  }
  nodes_[static_cast<std::size_t>(at)].token = static_cast<std::int32_t>(tokens_.size());
  tokens_.push_back({token.id, token.single_word, token.lstrip, token.rstrip});
}

std::int32_t AddedTokenMatcher::longest_at(std::string_view text,
                                           std::size_t at,
                                           std::size_t& end) const {
  std::int32_t found = -1;
  const Node* node = &nodes_[0];
  for (std::size_t i = at; i < text.size(); ++i) {
    const auto it = node->next.find(text[i]);
    if (it == node->next.end()) break;
    node = &nodes_[static_cast<std::size_t>(it->second)];
    if (node->token >= 0) {
      found = node->token;
      end = i + 1;
    }
  }
  return found;
}

void AddedTokenMatcher::split(std::string_view text,
                              const std::function<void(std::string_view)>& plain,
                              const std::function<void(std::int32_t)>& token) const {
  std::size_t done = 0;  // everything before is handed out
  std::size_t at = 0;
  while (at < text.size()) {
    std::size_t end = at;
    const std::int32_t found = longest_at(text, at, end);
    if (found < 0) {
      ++at;
      continue;
    }
    const Flags& flags = tokens_[static_cast<std::size_t>(found)];
    std::size_t begin = at;
    at = end;
    if (flags.single_word && ((begin > 0 && is_word_char(char_before(text, begin))) ||
                              (end < text.size() && is_word_char(char_at(text, end))))) {
      continue;
    }
    if (begin < done) continue;  // swallowed by the token before it
    if (flags.lstrip) begin = strip_left(text, begin, done);
    if (flags.rstrip) end = strip_right(text, end);
    if (begin > done) plain(text.substr(done, begin - done));
    token(flags.id);
    done = end;
  }
  if (done < text.size()) plain(text.substr(done));
}

}  // namespace ferry
