// Builds a Tokenizer from a tiktoken file, as Kimi-K2 ships one. The file has tokens and ranks
// only; how text is cut stands in that model's Python code, and so stands here.
#include <array>
#include <charconv>
#include <nlohmann/json.hpp>

#include "ferry/checkpoint/config_reader.h"
#include "ferry/core/error.h"
#include "ferry/text/tokenizer_parts.h"

namespace ferry {

using nlohmann::json;

namespace {

// Runs of Han characters; words that begin in upper or go on in lower case, with an English ending;
// up to three digits; signs; white space. Han is left out of words by look-ahead, since PCRE2 has
// no intersection of classes.
constexpr std::string_view kPattern =
    R"([\p{sc:Han}]+)"
    R"(|[^\r\n\p{L}\p{N}]?(?:(?!\p{sc:Han})[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}])*(?:(?!\p{sc:Han})[\p{Ll}\p{Lm}\p{Lo}\p{M}])+(?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
    R"(|[^\r\n\p{L}\p{N}]?(?:(?!\p{sc:Han})[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}])+(?:(?!\p{sc:Han})[\p{Ll}\p{Lm}\p{Lo}\p{M}])*(?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
    R"(|\p{N}{1,3})"
    R"(| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+)"
    R"(|\s+(?!\S))"
    R"(|\s+)";

// Every way to cut a token is looked at, so that its length matters.
constexpr std::size_t kMaxTokenBytes = 1024;
// Ids behind the ranks that are special tokens, named in the config or reserved.
constexpr std::int32_t kReserved = 258;

std::optional<std::string> decode_base64(std::string_view text) {
  constexpr std::string_view kDigits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  if (text.empty() || text.size() % 4 != 0) return std::nullopt;
  const std::size_t padding = text.ends_with("==") ? 2 : text.ends_with("=") ? 1 : 0;
  std::string bytes;
  std::uint32_t bits = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const bool pads = i + padding >= text.size();
    const std::size_t digit = pads ? 0 : kDigits.find(text[i]);
    if (digit == std::string_view::npos) return std::nullopt;
    bits = bits << 6 | static_cast<std::uint32_t>(digit);
    if (i % 4 != 3) continue;
    for (int shift = 16; shift >= 0; shift -= 8) bytes += static_cast<char>(bits >> shift & 0xFF);
  }
  bytes.resize(bytes.size() - padding);
  return bytes;
}

class Builder {
 public:
  explicit Builder(const std::string& file) {
    parts_ = std::make_unique<TokenizerParts>(
        file, PreTokenizer(Regex(kPattern, file + ": pattern of the tokenizer")));
    parts_->ignore_merges = true;  // tiktoken looks for the whole word first
  }

  void read_ranks(std::string_view text);
  void read_special(const json& config, const std::string& file);
  std::unique_ptr<const TokenizerParts> build() &&;

 private:
  void read_line(std::string_view line, int number);

  std::unique_ptr<TokenizerParts> parts_;
  std::int32_t ranks_ = 0;
};

void Builder::read_ranks(std::string_view text) {
  for (int number = 1; !text.empty(); ++number) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (!line.empty()) read_line(line, number);
  }
}

void Builder::read_line(std::string_view line, int number) {
  const std::size_t space = std::min(line.find(' '), line.size());
  const auto bytes = decode_base64(line.substr(0, space));
  std::int32_t id = -1;
  const char* end = line.data() + line.size();
  if (space < line.size()) {
    const auto result = std::from_chars(line.data() + space + 1, end, id);
    if (result.ec != std::errc() || result.ptr != end) id = -1;
  }
  const bool fits = bytes && bytes->size() <= kMaxTokenBytes;
  const bool fresh = fits && parts_->words.emplace(*bytes, id).second;
  if (!fresh || id < 0 || id >= kMaxWidth) {
    fail<ModelError>("{}: line {}: expected a new token in base64 and a rank below {}",
                     parts_->file,
                     number,
                     kMaxWidth);
  }
  // Tokens are written as byte-level BPE writes them: they need not be UTF-8.
  std::string token;
  for (const char c : *bytes) token += letter_of_byte(static_cast<unsigned char>(c));
  place_token(*parts_, id, token, *bytes);
  ranks_ = std::max(ranks_, id + 1);
}

void Builder::read_special(const json& config, const std::string& file) {
  const ConfigReader in(config, file);
  std::map<std::int32_t, AddedToken> tokens;
  for (std::int32_t id = ranks_; id < ranks_ + kReserved; ++id) {
    tokens[id] = {.id = id,
                  .content = fmt::format("<|reserved_token_{}|>", id),
                  .special = true,
                  .normalized = false};
  }
  if (in.has("added_tokens_decoder")) {
    if (!in.value("added_tokens_decoder").is_object()) {
      in.refuse("added_tokens_decoder", "an object");
    }
    for (const auto& [key, fields] : in.value("added_tokens_decoder").items()) {
      std::int32_t id = -1;
      const auto result = std::from_chars(key.data(), key.data() + key.size(), id);
      const bool whole = result.ec == std::errc() && result.ptr == key.data() + key.size();
      if (!whole || id < ranks_ || id >= kMaxWidth || !fields.is_object()) {
        in.refuse("added_tokens_decoder",
                  fmt::format("objects under ids from {} to {}", ranks_, kMaxWidth - 1));
      }
      const ConfigReader token(fields, fmt::format("{}: added_tokens_decoder: {}", file, key));
      tokens[id] = {.id = id,
                    .content = token.text_or("content", ""),
                    .special = token.flag_or("special", false),
                    .normalized = false};
      if (tokens[id].content.empty()) token.refuse("content", "a text");
    }
  }
  for (const auto& [id, token] : tokens) {
    place_token(*parts_, id, token.content, token.content);
    match_added_token(*parts_, token);
  }
}

/// tiktoken merges the neighbours that together are the token of the lowest rank. So every way to
/// cut a token in two tokens is a rule, with the token's rank.
std::unique_ptr<const TokenizerParts> Builder::build() && {
  std::array<std::int32_t, 256> byte_ids{};
  for (unsigned b = 0; b < 256; ++b) {
    const auto it = parts_->words.find(std::string(1, static_cast<char>(b)));
    if (it == parts_->words.end()) {
      fail<ModelError>(
          "{}: expected a token for each byte, found none for 0x{:02x}", parts_->file, b);
    }
    byte_ids[b] = it->second;
  }
  std::vector<Bpe::Merge> merges;
  for (const auto& [bytes, id] : parts_->words) {
    for (std::size_t cut = 1; cut < bytes.size(); ++cut) {
      const auto left = parts_->words.find(bytes.substr(0, cut));
      if (left == parts_->words.end()) continue;
      const auto right = parts_->words.find(bytes.substr(cut));
      if (right == parts_->words.end()) continue;
      merges.push_back({left->second, right->second, id, id});
    }
  }
  parts_->bpe = Bpe(byte_ids, merges);
  return std::move(parts_);
}

}  // namespace

Tokenizer Tokenizer::parse_tiktoken(std::string_view ranks,
                                    const std::string& file,
                                    std::string_view config,
                                    const std::string& config_file) {
  const json root = parse_json(config, config_file);
  if (!root.is_object()) {
    fail<ModelError>("{}: expected a JSON object, found {}", config_file, describe(root));
  }
  Builder builder(file);
  builder.read_ranks(ranks);
  builder.read_special(root, config_file);
  return Tokenizer(std::move(builder).build());
}

}  // namespace ferry
