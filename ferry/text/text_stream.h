// Tokens -> the text that a client sees: characters as they become complete, cut at stop strings.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "ferry/text/tokenizer.h"

namespace ferry {

/// Finds the first of some strings in a text that comes in pieces. What could be the beginning of
/// one is held back until it is known. Threads: one at a time.
class StopStrings {
 public:
  /// Empty strings are ignored. `keep`: what was found is shown, too.
  explicit StopStrings(std::vector<std::string> strings, bool keep = false);

  /// The text that can be shown now: none of a stop string unless it is kept, nor what follows one.
  std::string put(std::string_view text);
  /// What is still held back, at the end.
  std::string finish();

  bool found() const { return !match_.empty(); }

  /// The one that was found.
  const std::string& match() const { return match_; }

 private:
  std::vector<std::string> strings_;
  bool keep_;
  std::string held_;
  std::string match_;
};

struct TextOptions {
  std::vector<std::string> stop;
  bool keep_stop = false;  ///< the string that ended it is part of the text
  bool skip_special = true;
  std::vector<std::int32_t> silent_ids;  ///< whose text is not shown: what ended the request
};

/// Borrows the tokenizer, null for a model without one, whose text is empty. Threads: one at a
/// time.
class TextStream {
 public:
  TextStream(const Tokenizer* tokenizer, TextOptions options);

  /// The text that comes with this token. With the last one also what was held back.
  std::string put(std::int32_t token, bool last);

  const StopStrings& stop() const { return stop_; }

 private:
  const Tokenizer* tokenizer_;
  TextOptions options_;
  std::optional<StreamDecoder> decoder_;
  StopStrings stop_;
};

/// The text of one token by itself, as logprobs name it; bytes that are no character are U+FFFD.
std::string token_text(const Tokenizer* tokenizer, std::int32_t id);

}  // namespace ferry
