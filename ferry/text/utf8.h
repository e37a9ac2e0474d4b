// UTF-8 for the tokenizer: repair, normal form, character classes.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace ferry {

/// Turns bytes that arrive in pieces into valid UTF-8: what is no UTF-8 becomes U+FFFD, one for
/// each maximal part of a character (as Rust, Python and browsers do it). A character that is still
/// incomplete is held back.
class Utf8Repair {
 public:
  void put(std::string_view bytes, std::string& out);
  /// No more bytes will come: a held back part becomes U+FFFD.
  void finish(std::string& out);

 private:
  bool may_follow(unsigned char byte) const;

  char held_[4] = {};
  unsigned held_count_ = 0;
  unsigned needed_ = 0;  // bytes of the character in held_
};

/// The whole text repaired.
std::string repair_utf8(std::string_view text);

/// Unicode normalisation form C. REQUIRES: valid UTF-8.
std::string normalize_nfc(std::string_view text);

/// The character that ends just before / starts at `at`; 0 when there is none.
/// REQUIRES: valid UTF-8, at on a character boundary.
char32_t char_before(std::string_view text, std::size_t at);
char32_t char_at(std::string_view text, std::size_t at);

/// Appends one character.
void append_utf8(char32_t c, std::string& out);

/// Bytes of a character of valid UTF-8, from its first byte.
std::size_t utf8_length(char first);

bool is_word_char(char32_t c);    // letters, marks, digits, connectors: regex \w
bool is_white_space(char32_t c);  // the Unicode property White_Space: regex \s
bool is_letter(char32_t c);
bool is_printable(
    char32_t c);  // as Python's str.isprintable: neither control nor separator, but space

/// Simple case mapping: one character for one.
char32_t upper_case(char32_t c);
char32_t lower_case(char32_t c);

}  // namespace ferry
