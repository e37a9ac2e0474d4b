// Python's str.format: https://docs.python.org/3/library/string.html#format-string-syntax
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <regex>

#include "ferry/text/jinja/builtins.h"
#include "ferry/text/jinja/python_text.h"
#include "ferry/text/utf8.h"

namespace ferry {

namespace {

constexpr std::size_t kLongestSpec = 40;
constexpr std::int64_t kWidest = 1'000'000;  // of a padded field; far above any in a template

std::int64_t number_in(std::string_view digits, std::int64_t otherwise) {
  if (digits.empty()) return otherwise;
  std::int64_t number = 0;
  const auto [end, error] = std::from_chars(digits.begin(), digits.end(), number);
  if (error != std::errc() || number > kWidest) throw JinjaFailure("format: a number is too large");
  return number;
}

/// [[fill]align][sign][0][width][.precision][type], of which Python knows more.
struct FieldStyle {
  explicit FieldStyle(const std::string& spec) {
    // One character of UTF-8 before <, >, = or ^.
    static const std::regex form(
        R"(((?:[\x00-\x7F]|[\xC0-\xFF][\x80-\xBF]*)?[<>=^])?([+\- ])?(0)?(\d*)(?:\.(\d+))?([defgs])?)");
    std::smatch found;
    // std::regex recurses over what it reads.
    if (spec.size() > kLongestSpec || !std::regex_match(spec, found, form)) {
      throw JinjaFailure(not_supported(fmt::format("format \"{}\"", spec)));
    }
    if (const std::string fill = found[1]; !fill.empty()) {
      align = fill.back();
      if (fill.size() > 1) pad = fill.substr(0, fill.size() - 1);
    } else if (found[3].matched) {
      align = '=';
      pad.assign(1, '0');  // GCC 12 warns of a copy over itself otherwise
    }
    sign = found[2];
    width = number_in(found[4].str(), 0);
    precision = number_in(found[5].str(), -1);
    type = found[6].matched ? found[6].str()[0] : '\0';
  }

  std::string pad = " ";
  char align = '\0';  // '=': behind the sign; none: as the type has it
  std::string sign;
  std::int64_t width = 0;
  std::int64_t precision = -1;
  char type = '\0';
};

std::string padded(const std::string& text, char align, const FieldStyle& style) {
  const std::int64_t missing = style.width - static_cast<std::int64_t>(length(text));
  if (missing <= 0) return text;
  std::int64_t before = align == '<' ? 0 : align == '^' ? missing / 2 : missing;
  std::string out;
  if (align == '=' && (text[0] == '-' || text[0] == '+' || text[0] == ' ')) out += text[0];
  const std::string rest = text.substr(out.size());
  for (std::int64_t i = 0; i < before; ++i) out += style.pad;
  out += rest;
  for (std::int64_t i = before; i < missing; ++i) out += style.pad;
  return out;
}

std::string number_field(const JinjaValue& value, const FieldStyle& style) {
  if (style.type == 's') throw JinjaFailure("format: s is for strings");
  std::string digits;
  if (value.real() == nullptr && (style.type == '\0' || style.type == 'd')) {
    if (style.precision >= 0) throw JinjaFailure("format: an integer has no precision");
    digits = std::to_string(as_integer(value, "format"));
  } else {
    if (style.type == 'd') throw JinjaFailure("format: d is for integers");
    if (style.type == '\0' && style.precision >= 0) {
      throw JinjaFailure(not_supported("a precision without f, e or g"));
    }
    const std::int64_t precision = style.precision < 0 ? 6 : style.precision;
    digits = style.type == '\0'
                 ? python_float(as_double(value))
                 : fmt::format(fmt::runtime(fmt::format("{{:.{}{}}}", precision, style.type)),
                               as_double(value));
  }
  if (digits[0] != '-' && !style.sign.empty() && style.sign != "-") digits = style.sign + digits;
  return padded(digits, style.align == '\0' ? '>' : style.align, style);
}

std::string text_field(std::string text, const FieldStyle& style) {
  if (style.type != '\0' && style.type != 's') {
    throw JinjaFailure(fmt::format("format: {} is for numbers", style.type));
  }
  if (!style.sign.empty() || style.align == '=') {
    throw JinjaFailure("format: a string has no sign and no zeros before it");
  }
  if (style.precision >= 0 && style.precision < static_cast<std::int64_t>(length(text))) {
    text.resize(character_starts(text)[static_cast<std::size_t>(style.precision)]);
  }
  return padded(text, style.align == '\0' ? '<' : style.align, style);
}

class Formatter {
 public:
  Formatter(JinjaBudget& budget,
            const std::vector<JinjaValue>& positional,
            const JinjaArgs::Named& named)
      : budget_(budget), positional_(positional), named_(named) {}

  /// What stands between braces: name!conversion:spec.
  std::string field(std::string_view inside) {
    const std::size_t colon = inside.find(':');
    const std::string spec(colon == std::string_view::npos ? "" : inside.substr(colon + 1));
    if (spec.find('{') != std::string::npos)
      throw JinjaFailure(not_supported("a field in a field"));
    std::string_view name = inside.substr(0, colon);
    const std::size_t mark = name.find('!');
    const std::string_view conversion = mark == std::string_view::npos ? "" : name.substr(mark + 1);
    name = name.substr(0, mark);
    const JinjaValue value = look_up(name);
    if (conversion == "r") {
      return text_field(python_repr(value), FieldStyle(spec));
    }
    if (mark != std::string_view::npos && conversion != "s") {
      throw JinjaFailure(not_supported(fmt::format("conversion !{}", conversion)));
    }
    if (spec.empty() || (mark != std::string_view::npos) || value.text() != nullptr) {
      return text_field(jinja_text(budget_, value), FieldStyle(spec));
    }
    if (value.is_number()) return number_field(value, FieldStyle(spec));
    value.require_defined();
    throw JinjaFailure(fmt::format("format: a {} takes no format", value.type_name()));
  }

 private:
  JinjaValue argument(std::string_view name) {
    const bool digits = name.find_first_not_of("0123456789") == std::string_view::npos;
    if (!digits) {
      const auto it = std::find_if(
          named_.begin(), named_.end(), [&](const auto& arg) { return arg.first == name; });
      if (it == named_.end()) throw JinjaFailure(fmt::format("format: there is no '{}'", name));
      return it->second;
    }
    const bool numbered = !name.empty();
    if (numbered_.value_or(numbered) != numbered) {
      throw JinjaFailure("format: numbered fields beside fields without a number");
    }
    numbered_ = numbered;
    const std::int64_t at = numbered ? number_in(name, 0) : next_++;
    if (at >= static_cast<std::int64_t>(positional_.size())) {
      throw JinjaFailure(fmt::format("format: there is no argument {}", at));
    }
    return positional_[static_cast<std::size_t>(at)];
  }

  /// name.attribute[index]...
  JinjaValue look_up(std::string_view name) {
    std::size_t at = std::min(name.find_first_of(".["), name.size());
    JinjaValue value = argument(name.substr(0, at));
    while (at < name.size()) {
      const bool index = name[at] == '[';
      const std::size_t end = index ? name.find(']', at) : name.find_first_of(".[", at + 1);
      if (index && end == std::string_view::npos) throw JinjaFailure("format: a [ without its ]");
      const std::string part(name.substr(at + 1, std::min(end, name.size()) - at - 1));
      const bool digits =
          !part.empty() && part.find_first_not_of("0123456789") == std::string::npos;
      value = !index   ? jinja_attribute(value, part)
              : digits ? jinja_item(budget_, value, JinjaValue(number_in(part, 0)))
                       : jinja_item(budget_, value, JinjaValue::text(part));
      value.require_defined();
      at = end == std::string_view::npos ? name.size() : end + (index ? 1 : 0);
      if (index && at < name.size() && name[at] != '.' && name[at] != '[') {
        throw JinjaFailure("format: only . and [ may follow ]");
      }
    }
    return value;
  }

  JinjaBudget& budget_;
  const std::vector<JinjaValue>& positional_;
  const JinjaArgs::Named& named_;
  std::optional<bool> numbered_;  // whether fields so far had numbers
  std::int64_t next_ = 0;
};

}  // namespace

std::string jinja_format(JinjaBudget& budget,
                         std::string_view text,
                         const std::vector<JinjaValue>& positional,
                         const JinjaArgs::Named& named) {
  Formatter formatter(budget, positional, named);
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '{' && text[i] != '}') {
      out += text[i];
    } else if (i + 1 < text.size() && text[i + 1] == text[i]) {
      out += text[i++];
    } else {
      const std::size_t end = text.find('}', i);
      if (text[i] == '}' || end == std::string_view::npos) {
        throw JinjaFailure("format: a brace that is alone");
      }
      out += formatter.field(text.substr(i + 1, end - i - 1));
      if (out.size() > budget.max_text()) budget.spend_text(out.size());  // throws
      i = end;
    }
  }
  budget.spend_text(out.size());
  return out;
}

}  // namespace ferry
