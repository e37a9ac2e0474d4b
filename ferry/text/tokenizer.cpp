#include "ferry/text/tokenizer.h"

#include <array>

#include "ferry/core/error.h"
#include "ferry/text/tokenizer_parts.h"

namespace ferry {

namespace {

struct ByteLetters {
  ByteLetters() {
    char32_t next = 0x100;
    for (unsigned b = 0; b < 256; ++b) {
      const bool itself =
          (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || (b >= 0xAE && b <= 0xFF);
      letter[b] = itself ? static_cast<char32_t>(b) : next++;
    }
    byte.fill(-1);
    for (unsigned b = 0; b < 256; ++b) byte[letter[b]] = static_cast<int>(b);
  }

  std::array<char32_t, 256> letter{};
  std::array<int, 0x200> byte{};
};

const ByteLetters& byte_letters() {
  static const ByteLetters letters;
  return letters;
}

}  // namespace

std::optional<std::string> bytes_of_letters(std::string_view token) {
  std::string bytes;
  for (std::size_t i = 0; i < token.size(); i += utf8_length(token[i])) {
    const char32_t c = char_at(token, i);
    if (c >= byte_letters().byte.size() || byte_letters().byte[c] < 0) return std::nullopt;
    bytes += static_cast<char>(byte_letters().byte[c]);
  }
  return bytes;
}

std::string letter_of_byte(unsigned char byte) {
  std::string letter;
  append_utf8(byte_letters().letter[byte], letter);
  return letter;
}

void place_token(TokenizerParts& parts,
                 std::int32_t id,
                 const std::string& token,
                 std::string bytes) {
  const auto at = static_cast<std::size_t>(id);
  if (at >= parts.bytes.size()) {
    parts.bytes.resize(at + 1);
    parts.present.resize(at + 1);
  }
  const auto known = parts.ids.find(token);
  if (parts.present[at] ? known == parts.ids.end() || known->second != id
                        : known != parts.ids.end()) {
    fail<ModelError>("{}: token {}: expected an id of its own, found {}", parts.file, token, id);
  }
  parts.bytes[at] = std::move(bytes);
  parts.present[at] = true;
  parts.ids.emplace(token, id);
}

void match_added_token(TokenizerParts& parts, const AddedToken& token) {
  if (token.special) parts.special.insert(token.id);
  if (!token.normalized) {
    parts.raw_tokens.add(token, token.content);
    return;
  }
  const std::string normal = parts.normalizer.normalize(token.content);
  if (!normal.empty()) parts.normalized_tokens.add(token, normal);
}

Tokenizer::Tokenizer(std::unique_ptr<const TokenizerParts> parts) : parts_(std::move(parts)) {}

Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;

std::vector<std::int32_t> Tokenizer::encode(std::string_view text, bool add_special) const {
  std::vector<std::int32_t> ids;
  if (add_special) ids = parts_->prefix;
  Bpe::Scratch scratch;
  const auto token = [&](std::int32_t id) { ids.push_back(id); };
  const auto word = [&](std::string_view w) {
    if (parts_->ignore_merges) {
      const auto it = parts_->words.find(std::string(w));
      if (it != parts_->words.end()) return token(it->second);
    }
    parts_->bpe.encode(w, ids, scratch);
  };
  const std::string valid = repair_utf8(text);
  const auto raw = [&](std::string_view piece) {
    const std::string changed = parts_->normalizer.normalize(piece);
    const auto plain = [&](std::string_view part) {
      const bool at_start = piece.data() == valid.data() && part.data() == changed.data();
      parts_->pre_tokenizer.split(part, at_start, word);
    };
    parts_->normalized_tokens.split(changed, plain, token);
  };
  parts_->raw_tokens.split(valid, raw, token);
  if (add_special) ids.insert(ids.end(), parts_->suffix.begin(), parts_->suffix.end());
  return ids;
}

bool Tokenizer::has_token(std::int32_t id) const {
  return id >= 0 && id < size() && parts_->present[static_cast<std::size_t>(id)];
}

std::string_view Tokenizer::token_bytes(std::int32_t id) const {
  if (!has_token(id)) {
    fail<ConfigError>("{}: token id {}: expected one of the vocabulary's (0 to {}), found none",
                      parts_->file,
                      id,
                      size() - 1);
  }
  return parts_->bytes[static_cast<std::size_t>(id)];
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids, bool skip_special) const {
  std::string text;
  Utf8Repair repair;
  for (const std::int32_t id : ids) {
    const std::string_view bytes = token_bytes(id);
    if (!skip_special || !is_special(id)) repair.put(bytes, text);
  }
  repair.finish(text);
  if (text.starts_with(parts_->dropped_prefix)) text.erase(0, parts_->dropped_prefix.size());
  return text;
}

bool Tokenizer::is_special(std::int32_t id) const { return parts_->special.contains(id); }

std::int32_t Tokenizer::size() const { return static_cast<std::int32_t>(parts_->bytes.size()); }

std::string StreamDecoder::put(std::int32_t id) {
  std::string text;
  const std::string_view bytes = tokenizer_.token_bytes(id);
  if (!skip_special_ || !tokenizer_.is_special(id)) repair_.put(bytes, text);
  return text;
}

std::string StreamDecoder::finish() {
  std::string text;
  repair_.finish(text);
  return text;
}

}  // namespace ferry
