#define PCRE2_CODE_UNIT_WIDTH 8
#include "ferry/model/regex.h"

#include <pcre2.h>

#include <utility>

#include "ferry/core/error.h"
#include "ferry/model/utf8.h"

namespace ferry {

struct Regex::Code {
  explicit Code(pcre2_code* c) : code(c) {}

  ~Code() { pcre2_code_free(code); }

  Code(const Code&) = delete;
  Code& operator=(const Code&) = delete;

  pcre2_code* code;
};

namespace {

std::string message_of(int error) {
  PCRE2_UCHAR text[256] = {};
  pcre2_get_error_message(error, text, sizeof(text));
  return reinterpret_cast<const char*>(text);
}

constexpr std::string_view kWord = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}";

/// The classes that the two dialects understand differently, spelt out: PCRE2 counts U+180E as
/// space, and leaves marks and connectors out of \w.
std::string translate(std::string_view pattern, const std::string& file) {
  std::string out;
  int class_depth = 0;
  for (std::size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '[') ++class_depth;
    if (c == ']' && class_depth > 0) --class_depth;
    if (c != '\\' || i + 1 == pattern.size()) {
      out += c;
      continue;
    }
    const char escaped = pattern[++i];
    if (escaped == 's') {
      out += "\\p{White_Space}";
    } else if (escaped == 'S') {
      out += "\\P{White_Space}";
    } else if (escaped == 'w') {
      out += class_depth > 0 ? std::string(kWord) : fmt::format("[{}]", kWord);
    } else if (escaped == 'W' && class_depth == 0) {
      out += fmt::format("[^{}]", kWord);
    } else if (escaped == 'W') {
      fail<ModelError>("{}: pattern {}: \\W inside a class is not supported", file, pattern);
    } else {
      out += c;
      out += escaped;
    }
  }
  return out;
}

}  // namespace

Regex::Regex(std::string_view pattern, std::string file) : file_(std::move(file)) {
  const std::string text = translate(pattern, file_);
  int error = 0;
  PCRE2_SIZE offset = 0;
  // MULTILINE: in Oniguruma's Ruby dialect ^ and $ are always about lines.
  pcre2_code* code =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(text.data()),
                    text.size(),
                    PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C,
                    &error,
                    &offset,
                    nullptr);
  if (code == nullptr) {
    fail<ModelError>(
        "{}: pattern {}: does not compile: {} at {}", file_, pattern, message_of(error), offset);
  }
  code_ = std::make_shared<Code>(code);
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // where it cannot, matching interprets
}

Regex Regex::literal(std::string_view text, std::string file) {
  std::string pattern;
  for (const char c : text) {
    // Any ASCII punctuation may be escaped; letters and digits must not be.
    if (std::string_view("\\^$.|?*+()[]{}-#&~").find(c) != std::string_view::npos) pattern += '\\';
    pattern += c;
  }
  return {pattern, std::move(file)};
}

void Regex::for_each_match(std::string_view text,
                           const std::function<void(std::size_t, std::size_t)>& found) const {
  const auto free_data = [](pcre2_match_data* d) { pcre2_match_data_free(d); };
  const std::unique_ptr<pcre2_match_data, decltype(free_data)> data(
      pcre2_match_data_create_from_pattern(code_->code, nullptr), free_data);
  if (!data) fail<Error>("out of memory in the tokenizer");
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  std::size_t at = 0;
  while (at < text.size()) {
    // Checking UTF-8 anew at every step would make long texts quadratic.
    std::uint32_t options = PCRE2_NO_UTF_CHECK;
    int rc = pcre2_match(code_->code, subject, text.size(), at, options, data.get(), nullptr);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT) {
      options |= PCRE2_NO_JIT;
      rc = pcre2_match(code_->code, subject, text.size(), at, options, data.get(), nullptr);
    }
    if (rc == PCRE2_ERROR_NOMATCH) return;
    if (rc < 0) fail<ModelError>("{}: its pattern fails on this text: {}", file_, message_of(rc));
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer(data.get());
    if (range[1] > range[0] && range[1] > at) {
      found(range[0], range[1]);
      at = range[1];
    } else {
      const std::size_t stay = std::max<std::size_t>(at, range[1]);
      at = stay < text.size() ? stay + utf8_length(text[stay]) : text.size();
    }
  }
}

}  // namespace ferry
