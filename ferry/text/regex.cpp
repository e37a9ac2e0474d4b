#define PCRE2_CODE_UNIT_WIDTH 8
#include "ferry/text/regex.h"

#include <pcre2.h>

#include <nlohmann/json.hpp>
#include <utility>

#include "ferry/checkpoint/config_reader.h"
#include "ferry/core/error.h"
#include "ferry/text/oniguruma.h"
#include "ferry/text/utf8.h"

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

pcre2_code* compile(const std::string& pattern, int& error, PCRE2_SIZE& offset) {
  // MULTILINE: in Oniguruma's Ruby dialect ^ and $ are always about lines.
  return pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()),
                       pattern.size(),
                       PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C,
                       &error,
                       &offset,
                       nullptr);
}

}  // namespace

Regex::Regex(std::string_view pattern, std::string file) : file_(std::move(file)) {
  const std::string text = oniguruma_to_pcre2(pattern, file_);
  int error = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* code = compile(text, error, offset);
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

Regex Regex::from_json(const ConfigReader& part) {
  if (!part.has("pattern") || !part.value("pattern").is_object()) {
    part.refuse("pattern", "an object");
  }
  const ConfigReader pattern = part.object("pattern");
  const bool regex = pattern.has("Regex");
  const std::string text = pattern.text_or(regex ? "Regex" : "String", "");
  if (text.empty()) part.refuse("pattern", "a Regex or a String that is not empty");
  return regex ? Regex(text, part.file()) : literal(text, part.file());
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

std::string Regex::replace(std::string_view text, std::string_view with) const {
  std::string out;
  std::size_t done = 0;
  for_each_match(text, [&](std::size_t begin, std::size_t end) {
    out += text.substr(done, begin - done);
    out += with;
    done = end;
  });
  return out += text.substr(done);
}

}  // namespace ferry
