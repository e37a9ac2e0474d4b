// Llama 4: the answer is a list of calls in Python's words, [name(key='value', n=[1, 2])].
#include <nlohmann/json.hpp>
#include <optional>

#include "ferry/text/answer/call_parsers.h"
#include "ferry/text/answer/text_cutter.h"
#include "ferry/text/utf8.h"

namespace ferry {

using Json = nlohmann::ordered_json;

namespace {

constexpr std::string_view kSpace = " \n\r\t";

bool is_name(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
         c == '.' || c == '-';
}

/// Literals of Python. Every function gives nothing for what is none.
class Literals {
 public:
  explicit Literals(std::string_view text) : text_(text) {}

  struct Call {
    std::string name;
    Json arguments = Json::object();
  };

  /// The whole text as name(key=value, ...).
  std::optional<Call> call() {
    Call call{.name = word()};
    if (call.name.empty() || !take('(')) return std::nullopt;
    while (!take(')')) {
      const std::string key = word();
      if (key.empty() || !take('=')) return std::nullopt;
      auto one = value(0);
      if (!one) return std::nullopt;
      call.arguments[key] = std::move(*one);
      if (!take(',') && peek() != ')') return std::nullopt;
    }
    skip();
    return at_ == text_.size() ? std::optional(std::move(call)) : std::nullopt;
  }

 private:
  static constexpr int kMostDepth = 64;

  void skip() { at_ = std::min(text_.find_first_not_of(kSpace, at_), text_.size()); }

  char peek() {
    skip();
    return at_ < text_.size() ? text_[at_] : '\0';
  }

  bool take(char c) {
    if (peek() != c || at_ == text_.size()) return false;
    ++at_;
    return true;
  }

  std::string word() {
    skip();
    const std::size_t begin = at_;
    while (at_ < text_.size() && is_name(text_[at_])) ++at_;
    return std::string(text_.substr(begin, at_ - begin));
  }

  std::optional<Json> value(int depth) {
    if (depth > kMostDepth) return std::nullopt;
    const char c = peek();
    if (c == '\'' || c == '"') return text();
    if (take('[')) return list(']', depth);
    if (take('(')) return list(')', depth);
    if (take('{')) return dict(depth);
    const std::size_t begin = at_;
    while (at_ < text_.size() && (is_name(text_[at_]) || text_[at_] == '+')) ++at_;
    const std::string bare(text_.substr(begin, at_ - begin));
    if (bare == "True" || bare == "true") return Json(true);
    if (bare == "False" || bare == "false") return Json(false);
    if (bare == "None" || bare == "null") return Json(nullptr);
    Json number = Json::parse(bare, nullptr, /*allow_exceptions=*/false);
    return number.is_number() ? std::optional(std::move(number)) : std::nullopt;
  }

  std::optional<Json> list(char end, int depth) {
    Json all = Json::array();
    while (!take(end)) {
      auto one = value(depth + 1);
      if (!one) return std::nullopt;
      all.push_back(std::move(*one));
      if (!take(',') && peek() != end) return std::nullopt;
    }
    return all;
  }

  std::optional<Json> dict(int depth) {
    Json all = Json::object();
    while (!take('}')) {
      const auto key = value(depth + 1);
      if (!key || !key->is_string() || !take(':')) return std::nullopt;
      auto one = value(depth + 1);
      if (!one) return std::nullopt;
      all[key->get<std::string>()] = std::move(*one);
      if (!take(',') && peek() != '}') return std::nullopt;
    }
    return all;
  }

  std::optional<Json> text() {
    const char quote = text_[at_++];
    std::string result;
    while (at_ < text_.size() && text_[at_] != quote) {
      const char c = text_[at_++];
      if (c != '\\') {
        result += c;
        continue;
      }
      if (at_ == text_.size()) return std::nullopt;
      if (!escape(text_[at_++], result)) return std::nullopt;
    }
    return take(quote) ? std::optional(Json(result)) : std::nullopt;
  }

  bool escape(char c, std::string& result) {
    constexpr std::string_view kNames = "ntrbfva0";
    constexpr std::string_view kMeant("\n\t\r\b\f\v\a\0", 8);
    if (c == 'x' || c == 'u') {
      const std::size_t digits = c == 'x' ? 2 : 4;
      const std::string hex(text_.substr(at_, digits));
      if (hex.size() < digits ||
          hex.find_first_not_of("0123456789abcdefABCDEF") != std::string::npos)
        return false;
      append_utf8(static_cast<char32_t>(std::stoul(hex, nullptr, 16)), result);
      at_ += digits;
      return true;
    }
    const std::size_t named = kNames.find(c);
    result += named == std::string_view::npos ? c : kMeant[named];
    return true;
  }

  std::string_view text_;
  std::size_t at_ = 0;
};

class PythonicParser final : public SteppingParser {
 private:
  bool step() override {
    switch (place_) {
      case Place::begin:
        return begin();
      case Place::list:
        return next_call();
      case Place::text: {
        std::string text;
        const int mark = take_until({"<|python_start|>", "<|python_end|>"}, text);
        show(text);
        return mark != kNone;
      }
    }
    return false;
  }

  /// A list of calls, or plain text?
  bool begin() {
    const std::string_view text = buffer();
    std::size_t at = std::min(text.find_first_not_of(kSpace), text.size());
    constexpr std::string_view kStart = "<|python_start|>";
    if (text.substr(at).starts_with(kStart)) {
      at = std::min(text.find_first_not_of(kSpace, at + kStart.size()), text.size());
    } else if (kStart.starts_with(text.substr(at)) && !over()) {
      return false;
    }
    const std::size_t bracket = at;
    bool call = at < text.size() && text[at] == '[';
    if (call) {
      at = std::min(text.find_first_not_of(kSpace, at + 1), text.size());
      const std::size_t name = at;
      while (at < text.size() && is_name(text[at])) ++at;
      call = at < text.size() ? text[at] == '(' && at > name : !over();
    } else if (at == text.size()) {
      call = !over();
    }
    if (call && at == text.size()) return false;  // it may still become one
    place_ = call ? Place::list : Place::text;
    if (call) buffer().erase(0, bracket + 1);
    return true;
  }

  bool next_call() {
    const std::size_t begin = buffer().find_first_not_of(" \n\r\t,");
    if (begin == std::string::npos) return false;
    if (buffer()[begin] == ']') {
      buffer().erase(0, begin + 1);
      place_ = Place::text;
      return true;
    }
    const std::size_t end = end_of_call(begin);
    if (end == std::string::npos) {
      if (over()) place_ = Place::text;
      return over();
    }
    const std::string text = buffer().substr(begin, end - begin);
    auto call = Literals(text).call();
    buffer().erase(0, call ? end : 0);
    if (!call) {
      place_ = Place::text;
      return true;
    }
    begin_call(call->name);
    add_arguments(call->arguments.dump(-1, ' ', false, Json::error_handler_t::replace));
    return true;
  }

  /// Behind the parenthesis that closes it.
  std::size_t end_of_call(std::size_t at) {
    int depth = 0;
    char quote = 0;
    for (; at < buffer().size(); ++at) {
      const char c = buffer()[at];
      if (quote != 0) {
        if (c == '\\') ++at;
        if (c == quote) quote = 0;
      } else if (c == '\'' || c == '"') {
        quote = c;
      } else if (c == '(' || c == '[' || c == '{') {
        ++depth;
      } else if (c == ')' || c == ']' || c == '}') {
        if (--depth <= 0) return at + 1;
      }
    }
    return std::string::npos;
  }

  enum class Place : std::uint8_t { begin, list, text };
  Place place_ = Place::begin;
};

}  // namespace

std::unique_ptr<AnswerParser> pythonic_calls(const ArgumentTypes& /*types*/) {
  return std::make_unique<PythonicParser>();
}

}  // namespace ferry
