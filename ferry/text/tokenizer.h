// Text <-> token ids: BPE over bytes or over characters (SentencePiece) as Hugging Face's
// tokenizer.json describes it, or from a tiktoken file. What of these is supported:
// docs/checkpoints.md.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ferry/text/utf8.h"

namespace ferry {

struct TokenizerParts;  // tokenizer_parts.h

/// Immutable; const use from several threads is safe.
class Tokenizer {
 public:
  /// Whether the model has one of the texts that load() reads.
  static bool exists(const std::filesystem::path& directory);

  /// Reads <directory>/tokenizer.json or, where that is missing, tiktoken.model with
  /// tokenizer_config.json; of another source (a file) what it has as tokenizer.json. Throws
  /// ModelError naming file and part when it is damaged or asks for something that is not
  /// supported.
  static Tokenizer load(const std::filesystem::path& directory);

  /// The same from text; `file` is what errors call it.
  static Tokenizer parse(std::string_view json, const std::string& file);

  /// From a tiktoken file, lines of a token in base64 and its rank, which is its id. The config has
  /// the special tokens. Texts are cut as Kimi-K2 cuts them.
  static Tokenizer parse_tiktoken(std::string_view ranks,
                                  const std::string& file,
                                  std::string_view config,
                                  const std::string& config_file);

  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;

  /// Bytes that are no UTF-8 count as U+FFFD. Special tokens in the text become their ids.
  /// add_special: also what the post-processor puts around a text (a beginning-of-text token).
  std::vector<std::int32_t> encode(std::string_view text, bool add_special = true) const;

  /// Always valid UTF-8: token bytes that form no character become U+FFFD. SentencePiece's space at
  /// the beginning of a text is left out. Throws ConfigError for an id outside the vocabulary.
  std::string decode(std::span<const std::int32_t> ids, bool skip_special = false) const;

  /// Whether it is an added token marked special. False for unknown ids.
  bool is_special(std::int32_t id) const;

  /// Whether an id has a token. A model may have more ids, as padding, than its tokenizer.
  bool has_token(std::int32_t id) const;

  /// The bytes a token stands for. Throws ConfigError for an id outside the vocabulary.
  std::string_view token_bytes(std::int32_t id) const;

  /// One above the greatest id; some ids below may have no token.
  std::int32_t size() const;

 private:
  explicit Tokenizer(std::unique_ptr<const TokenizerParts> parts);

  std::unique_ptr<const TokenizerParts> parts_;
};

/// Decodes tokens one by one for streaming: text comes out as soon as its characters are complete,
/// and all of it together is what decode() gives, with a space at the beginning: what streams goes
/// on behind a prompt. Borrows the tokenizer.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer, bool skip_special = true)
      : tokenizer_(tokenizer), skip_special_(skip_special) {}

  /// The text that this token completes; may be empty.
  std::string put(std::int32_t id);

  /// What is held back at the end, as U+FFFD.
  std::string finish();

 private:
  const Tokenizer& tokenizer_;
  bool skip_special_;
  Utf8Repair repair_;
};

}  // namespace ferry
