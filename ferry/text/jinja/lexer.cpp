#include "ferry/text/jinja/lexer.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <system_error>

#include "ferry/core/error.h"
#include "ferry/text/jinja/value.h"
#include "ferry/text/utf8.h"

namespace ferry {

namespace {

using Kind = JinjaToken::Kind;

bool is_digit(char c) { return c >= '0' && c <= '9'; }

bool is_name_start(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }

bool is_name_part(char c) { return is_name_start(c) || is_digit(c); }

/// The base that 0x, 0o or 0b announce; 0 for none.
int radix_of(char first, char second) {
  if (first != '0') return 0;
  switch (second) {
    case 'x':
    case 'X':
      return 16;
    case 'o':
    case 'O':
      return 8;
    case 'b':
    case 'B':
      return 2;
    default:
      return 0;
  }
}

/// Python's universal newlines, and one at the end dropped, as Jinja reads templates.
std::string normalize_lines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (std::size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      out += source[i];
      continue;
    }
    out += '\n';
    if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

std::size_t skip_space(std::string_view text, std::size_t at) {
  while (at < text.size() && is_python_space(char_at(text, at))) at += utf8_length(text[at]);
  return at;
}

std::string_view strip_end(std::string_view text) {
  std::size_t keep = 0;
  for (std::size_t i = 0; i < text.size(); i += utf8_length(text[i])) {
    if (!is_python_space(char_at(text, i))) keep = i + utf8_length(text[i]);
  }
  return text.substr(0, keep);
}

class Lexer {
 public:
  Lexer(std::string_view source, const std::string& file)
      : text_(normalize_lines(source)), file_(file) {}

  std::vector<JinjaToken> run();

 private:
  /// How a tag begins or ends: '-' strips, '+' keeps, ' ' is the default.
  struct Edge {
    char sign = ' ';
    std::size_t after = std::string::npos;  // npos: it is not here
  };

  std::size_t next_tag() const;
  void data(std::size_t end, char sign, bool variable);
  void comment();
  bool raw();
  Edge keyword_tag(std::size_t at, std::string_view word, bool trims, char& begin_sign) const;
  void tag(bool variable);
  Edge tag_end(std::size_t at, bool variable) const;
  std::size_t after_end(std::size_t at, char sign, bool trims) const;
  void token();
  void number();
  void radix_number(int base);
  void string();
  void escape(std::string& out);
  void op();
  char32_t hex_escape(std::size_t digits);
  void push(Kind kind, std::string value = {});
  void advance(std::size_t to);

  bool at(std::string_view word) const { return text_.compare(at_, word.size(), word) == 0; }

  char peek(std::size_t ahead = 0) const {
    return at_ + ahead < text_.size() ? text_[at_ + ahead] : '\0';
  }

  [[noreturn]] void refuse(const std::string& why) const { refuse_template(file_, line_, why); }

  std::string text_;
  const std::string& file_;
  std::size_t at_ = 0;
  int line_ = 1;
  std::string open_;  // brackets of the tag that are open
  std::vector<JinjaToken> tokens_;
};

std::size_t Lexer::next_tag() const {
  for (std::size_t i = text_.find('{', at_); i < text_.size(); i = text_.find('{', i + 1)) {
    if (i + 1 == text_.size()) break;
    if (std::string_view("%{#").find(text_[i + 1]) != std::string_view::npos) return i;
  }
  return std::string::npos;
}

std::vector<JinjaToken> Lexer::run() {
  while (at_ < text_.size()) {
    const std::size_t begin = next_tag();
    if (begin == std::string::npos) {
      data(text_.size(), '+', false);
      break;
    }
    const char kind = text_[begin + 1];
    const char after = begin + 2 < text_.size() ? text_[begin + 2] : ' ';
    data(begin, after, kind == '{');
    if (kind == '#') {
      comment();
    } else if (kind == '{' || !raw()) {
      tag(kind == '{');
    }
  }
  push(Kind::end);
  return std::move(tokens_);
}

/// The text up to `end`, where a tag with this sign begins: '-' strips the white space before it;
/// else the blanks before a block on its line go, but not those before a variable.
void Lexer::data(std::size_t end, char sign, bool variable) {
  std::string_view piece = std::string_view(text_).substr(at_, end - at_);
  if (sign == '-') {
    piece = strip_end(piece);
  } else if (sign != '+' && !variable) {
    const std::size_t newline = piece.rfind('\n');
    const std::size_t line = newline == std::string_view::npos ? 0 : newline + 1;
    const bool line_starts = line > 0 || at_ == 0 || text_[at_ - 1] == '\n';
    if (line_starts && skip_space(piece, line) == piece.size()) piece = piece.substr(0, line);
  }
  if (!piece.empty()) push(Kind::data, std::string(piece));
  advance(end);
}

void Lexer::comment() {
  const int begin_line = line_;
  std::size_t begin = at_ + 2;
  if (begin < text_.size() && (text_[begin] == '-' || text_[begin] == '+')) ++begin;
  const std::size_t end = text_.find("#}", begin);
  if (end == std::string::npos) refuse_template(file_, begin_line, "a comment that does not end");
  const char sign = end > begin ? text_[end - 1] : ' ';
  advance(after_end(end + 2, sign, true));
}

/// Where the text after a tag begins.
std::size_t Lexer::after_end(std::size_t at, char sign, bool trims) const {
  if (sign == '-') return skip_space(text_, at);
  return sign != '+' && trims && at < text_.size() && text_[at] == '\n' ? at + 1 : at;
}

/// Whether {% word %} stands at `at`.
Lexer::Edge Lexer::keyword_tag(std::size_t at,
                               std::string_view word,
                               bool trims,
                               char& begin_sign) const {
  at += 2;
  begin_sign = at < text_.size() ? text_[at] : ' ';
  if (begin_sign == '-' || begin_sign == '+') ++at;
  at = skip_space(text_, at);
  if (text_.compare(at, word.size(), word) != 0) return {};
  at = skip_space(text_, at + word.size());
  char sign = ' ';
  if (at < text_.size() && (text_[at] == '-' || (trims && text_[at] == '+'))) sign = text_[at++];
  if (text_.compare(at, 2, "%}") != 0) return {};
  return {sign, after_end(at + 2, sign, trims)};
}

bool Lexer::raw() {
  char sign = ' ';
  const Edge begin = keyword_tag(at_, "raw", false, sign);
  if (begin.after == std::string::npos) return false;
  const int begin_line = line_;
  advance(begin.after);
  for (std::size_t end = text_.find("{%", at_); end != std::string::npos;
       end = text_.find("{%", end + 2)) {
    const Edge close = keyword_tag(end, "endraw", true, sign);
    if (close.after == std::string::npos) continue;
    data(end, sign, false);
    advance(close.after);
    return true;
  }
  refuse_template(file_, begin_line, "a raw block that does not end");
}

Lexer::Edge Lexer::tag_end(std::size_t at, bool variable) const {
  const std::string_view close = variable ? "}}" : "%}";
  char sign = ' ';
  if (at < text_.size() && (text_[at] == '-' || (!variable && text_[at] == '+')))
    sign = text_[at++];
  if (text_.compare(at, 2, close) != 0) return {};
  return {sign, after_end(at + 2, sign, !variable)};
}

void Lexer::tag(bool variable) {
  const int begin_line = line_;
  push(variable ? Kind::variable_begin : Kind::block_begin);
  advance(at_ + 2);
  if (peek() == '-' || peek() == '+') advance(at_ + 1);
  open_.clear();
  for (;;) {
    advance(skip_space(text_, at_));
    if (at_ >= text_.size()) refuse_template(file_, begin_line, "a tag that does not end");
    const Edge end = open_.empty() ? tag_end(at_, variable) : Edge{};
    if (end.after != std::string::npos) {
      push(variable ? Kind::variable_end : Kind::block_end);
      advance(end.after);
      return;
    }
    token();
  }
}

void Lexer::token() {
  const char c = peek();
  if (is_name_start(c)) {
    std::size_t end = at_;
    while (end < text_.size() && is_name_part(text_[end])) ++end;
    push(Kind::name, text_.substr(at_, end - at_));
    advance(end);
  } else if (is_digit(c)) {
    number();
  } else if (c == '\'' || c == '"') {
    string();
  } else {
    op();
  }
}

void Lexer::number() {
  if (const int base = radix_of(peek(), peek(1)); base != 0) return radix_number(base);
  std::string digits;
  std::size_t end = at_;
  const auto take_digits = [&] {
    while (end < text_.size() &&
           (is_digit(text_[end]) || (text_[end] == '_' && end + 1 < text_.size() &&
                                     is_digit(text_[end + 1]) && is_digit(text_[end - 1])))) {
      if (text_[end] != '_') digits += text_[end];
      ++end;
    }
  };
  const auto digit_at = [&](std::size_t i) { return i < text_.size() && is_digit(text_[i]); };
  take_digits();
  bool whole = true;
  // After a dot it is an index: a.0.1
  const bool after_dot = at_ > 0 && text_[at_ - 1] == '.';
  if (!after_dot && end < text_.size() && text_[end] == '.' && digit_at(end + 1)) {
    whole = false;
    digits += '.';
    ++end;
    take_digits();
  }
  if (!after_dot && end < text_.size() && (text_[end] == 'e' || text_[end] == 'E')) {
    const bool sign = end + 1 < text_.size() && (text_[end + 1] == '-' || text_[end + 1] == '+');
    if (digit_at(end + (sign ? 2 : 1))) {
      whole = false;
      digits += text_.substr(end, sign ? 2 : 1);
      end += sign ? 2 : 1;
      take_digits();
    }
  }
  JinjaToken token{.kind = whole ? Kind::integer : Kind::real, .line = line_};
  const char* last = digits.data() + digits.size();
  const auto result = whole ? std::from_chars(digits.data(), last, token.integer)
                            : std::from_chars(digits.data(), last, token.real);
  if (result.ec != std::errc() || (whole && digits.size() > 1 && digits[0] == '0')) {
    refuse(fmt::format("number {}: expected one of 64 bits", digits));
  }
  tokens_.push_back(std::move(token));
  advance(end);
}

void Lexer::radix_number(int base) {
  std::size_t end = at_ + 2;
  std::string digits;
  for (; end < text_.size() && is_name_part(text_[end]); ++end) {
    if (text_[end] != '_') digits += text_[end];
  }
  JinjaToken token{.kind = Kind::integer, .line = line_};
  const char* last = digits.data() + digits.size();
  const auto result = std::from_chars(digits.data(), last, token.integer, base);
  if (result.ec != std::errc() || result.ptr != last) {
    refuse(fmt::format("number {}: expected one of 64 bits", text_.substr(at_, end - at_)));
  }
  tokens_.push_back(std::move(token));
  advance(end);
}

void Lexer::string() {
  const int begin_line = line_;
  const char quote = peek();
  std::string value;
  advance(at_ + 1);
  while (peek() != quote) {
    if (at_ >= text_.size()) refuse_template(file_, begin_line, "a string that does not end");
    if (peek() == '\\') {
      escape(value);
    } else {
      value += peek();
      advance(at_ + 1);
    }
  }
  advance(at_ + 1);
  push(Kind::text, std::move(value));
  tokens_.back().line = begin_line;
}

/// Python's escapes. One that it does not know stays as it is, backslash and all.
void Lexer::escape(std::string& out) {
  constexpr std::string_view kLetters = "abfnrtv\\'\"";
  constexpr std::string_view kMeanings = "\a\b\f\n\r\t\v\\'\"";
  const char c = peek(1);
  if (at_ + 1 >= text_.size()) refuse("a string that does not end");
  if (const std::size_t known = kLetters.find(c); known != std::string_view::npos) {
    out += kMeanings[known];
    advance(at_ + 2);
  } else if (c == '\n') {
    advance(at_ + 2);
  } else if (c >= '0' && c <= '7') {
    char32_t value = 0;
    advance(at_ + 1);
    for (int i = 0; i < 3 && peek() >= '0' && peek() <= '7'; ++i) {
      value = value * 8 + static_cast<char32_t>(peek() - '0');
      advance(at_ + 1);
    }
    append_utf8(value, out);
  } else if (c == 'x' || c == 'u' || c == 'U') {
    advance(at_ + 2);
    append_utf8(hex_escape(c == 'x' ? 2 : c == 'u' ? 4 : 8), out);
  } else if (c == 'N') {
    refuse("characters by their Unicode name (\\N) are not supported");
  } else {
    out += '\\';
    advance(at_ + 1);
  }
}

char32_t Lexer::hex_escape(std::size_t digits) {
  const std::string hex = text_.substr(at_, digits);
  std::uint32_t value = 0;
  const auto result = std::from_chars(hex.data(), hex.data() + hex.size(), value, 16);
  if (result.ec != std::errc() || result.ptr != hex.data() + digits || value > 0x10FFFF ||
      (value >= 0xD800 && value <= 0xDFFF)) {
    refuse(fmt::format("escape of {}: expected {} digits of a character", hex, digits));
  }
  advance(at_ + digits);
  return value;
}

void Lexer::op() {
  constexpr std::array<std::string_view, 6> kLong = {"//", "**", "==", "!=", ">=", "<="};
  constexpr std::string_view kShort = "+-/*%~[](){}><=.:|,;";
  std::string value;
  for (const std::string_view candidate : kLong) {
    if (at(candidate)) value = candidate;
  }
  if (value.empty() && kShort.find(peek()) != std::string_view::npos) value = peek();
  if (value.empty()) {
    refuse(fmt::format("character {} does not belong in a tag",
                       text_.substr(at_, utf8_length(peek()))));
  }
  constexpr std::string_view kOpen = "([{";
  constexpr std::string_view kClose = ")]}";
  if (kOpen.find(value[0]) != std::string_view::npos) open_ += value[0];
  if (const std::size_t which = kClose.find(value[0]); which != std::string_view::npos) {
    if (open_.empty() || open_.back() != kOpen[which]) {
      refuse(fmt::format("{} closes nothing that is open", value));
    }
    open_.pop_back();
  }
  push(Kind::op, value);
  advance(at_ + value.size());
}

void Lexer::push(Kind kind, std::string value) {
  tokens_.push_back({.kind = kind, .line = line_, .value = std::move(value)});
}

void Lexer::advance(std::size_t to) {
  line_ += static_cast<int>(std::count(text_.begin() + static_cast<std::ptrdiff_t>(at_),
                                       text_.begin() + static_cast<std::ptrdiff_t>(to),
                                       '\n'));
  at_ = to;
}

}  // namespace

std::vector<JinjaToken> lex_jinja(std::string_view source, const std::string& file) {
  if (repair_utf8(source) != source) fail<ModelError>("{}: not UTF-8", file);
  return Lexer(source, file).run();
}

std::string template_error(const std::string& file, int line, const std::string& why) {
  std::string one_line = why;
  std::replace(one_line.begin(), one_line.end(), '\n', ' ');
  return fmt::format("{}: chat template, line {}: {}", file, line, one_line);
}

void refuse_template(const std::string& file, int line, const std::string& why) {
  throw ModelError(template_error(file, line, why));
}

}  // namespace ferry
