// Filters of one value: text, numbers, JSON.
#include <fmt/core.h>

#include <charconv>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "ferry/text/jinja/filter_tables.h"
#include "ferry/text/jinja/python_text.h"
#include "ferry/text/utf8.h"

namespace ferry {

namespace {

template <std::string (*convert)(std::string_view)>
JinjaValue converted(JinjaBudget& budget, const JinjaValue& value, JinjaArgs& args) {
  args.done();
  return JinjaValue::text(convert(jinja_text(budget, value)));
}

/// Jinja's own title case: words begin behind white space, hyphens and opening brackets.
std::string title_words(std::string_view text) {
  constexpr std::string_view kBefore = "-([{<";
  std::string out;
  bool begins = true;
  for (std::size_t i = 0; i < text.size(); i += utf8_length(text[i])) {
    const std::string_view c = text.substr(i, utf8_length(text[i]));
    const bool separates =
        is_python_space(char_at(text, i)) || kBefore.find(c) != std::string_view::npos;
    out += begins ? python_upper(c) : python_lower(c);
    begins = separates;
  }
  return out;
}

JinjaValue as_is(JinjaBudget&, const JinjaValue& value, JinjaArgs& args) {
  args.done();
  return value;
}

JinjaValue as_text(JinjaBudget& budget, const JinjaValue& value, JinjaArgs& args) {
  args.done();
  return JinjaValue::text(jinja_text(budget, value));
}

JinjaValue trim(JinjaBudget& budget, const JinjaValue& value, JinjaArgs& args) {
  const auto chars = args.optional_text("chars");
  args.done();
  const std::string text = jinja_text(budget, value);
  return JinjaValue::text(std::string(python_strip(
      text, chars ? std::optional<std::string_view>(*chars) : std::nullopt, true, true)));
}

JinjaValue replace(JinjaBudget& budget, const JinjaValue& value, JinjaArgs& args) {
  const std::string from = jinja_text(budget, args.required("old"));
  const std::string to = jinja_text(budget, args.required("new"));
  const auto count = args.optional("count");
  args.done();
  const bool all = !count || count->is_none();
  return JinjaValue::text(jinja_replace(budget,
                                        jinja_text(budget, value),
                                        from,
                                        to,
                                        all ? -1 : as_integer(*count, "replace: count")));
}

JinjaValue indent(JinjaBudget& budget, const JinjaValue& value, JinjaArgs& args) {
  const auto width = args.optional("width");
  const bool first = args.flag_or("first", false);
  const bool blank = args.flag_or("blank", false);
  args.done();
  value.require_defined();
  if (value.text() == nullptr) {
    throw JinjaFailure(fmt::format("indent: expected a string, found {}", value.type_name()));
  }
  const std::string indention =
      jinja_indention(budget, width.value_or(JinjaValue(std::int64_t{4})));
  std::string out;
  // The newline is Jinja's own: it keeps an empty line at the end.
  const std::vector<std::string> lines = python_split_lines(*value.text() + '\n');
  budget.spend_items(lines.size());
  for (std::size_t i = 0; i < lines.size(); ++i) {
    if (i > 0) out += '\n';
    const bool moves = i == 0 ? first : blank || !lines[i].empty();
    if (moves) out += indention;
    out += lines[i];
    if (out.size() > budget.max_text()) budget.spend_text(out.size());  // throws
  }
  budget.spend_text(out.size());
  return JinjaValue::text(std::move(out));
}

JinjaValue to_json(JinjaBudget& budget, const JinjaValue& value, JinjaArgs& args) {
  JsonStyle style;
  style.ensure_ascii = args.flag_or("ensure_ascii", false);
  const auto indention = args.optional("indent");
  const auto separators = args.optional("separators");
  style.sort_keys = args.flag_or("sort_keys", false);
  args.done();
  if (indention && !indention->is_none()) {
    style.indent = jinja_indention(budget, *indention);
    style.item_separator.assign(1, ',');  // = "," trips a false alarm of GCC 12
  }
  if (separators && !separators->is_none()) {
    const JinjaValue::List pair = jinja_iterate(budget, *separators);
    if (pair->items.size() != 2 || pair->items[0].text() == nullptr ||
        pair->items[1].text() == nullptr) {
      throw JinjaFailure("tojson: separators: expected two strings");
    }
    style.item_separator = *pair->items[0].text();
    style.key_separator = *pair->items[1].text();
  }
  spend_printing(budget, value);
  std::string text = python_json(value, style);
  budget.spend_text(text.size());
  return JinjaValue::text(std::move(text));
}

/// Not among Jinja's: engines that run templates of DeepSeek have it. A text of JSON -> its value.
JinjaValue from_json(JinjaBudget& budget, const JinjaValue& value, JinjaArgs& args) {
  args.done();
  value.require_defined();
  if (value.text() == nullptr) {
    throw JinjaFailure(fmt::format("from_json: expected a string, found {}", value.type_name()));
  }
  budget.spend_items(value.text()->size());
  constexpr int kMaxJsonDepth = 100;  // of values; the library recurses
  const auto bounded = [](int depth, nlohmann::ordered_json::parse_event_t, const auto&) {
    if (depth > kMaxJsonDepth) throw JinjaFailure("from_json: nests deeper than 100 levels");
    return true;
  };
  const auto json = nlohmann::ordered_json::parse(*value.text(), bounded, false);
  if (json.is_discarded()) throw JinjaFailure("from_json: the string is no JSON");
  return to_jinja(json);
}

JinjaValue fallback(JinjaBudget&, const JinjaValue& value, JinjaArgs& args) {
  const JinjaValue other = args.optional("default_value").value_or(JinjaValue::text(""));
  const bool also_false = args.flag_or("boolean", false);
  args.done();
  return value.is_undefined() || (also_false && !value.truthy()) ? other : value;
}

JinjaValue absolute(JinjaBudget&, const JinjaValue& value, JinjaArgs& args) {
  args.done();
  if (const auto* real = value.real()) return JinjaValue(std::abs(*real));
  const std::int64_t number = as_integer(value, "abs");
  if (number == std::numeric_limits<std::int64_t>::min()) throw JinjaFailure("abs: too great");
  return JinjaValue(number < 0 ? -number : number);
}

/// What Python's float() reads: white space around, underscores between digits.
std::optional<double> parse_real(std::string_view text) {
  std::string digits(python_strip(text, std::nullopt, true, true));
  std::erase(digits, '_');
  const char* begin = digits.data() + (digits.starts_with('+') ? 1 : 0);
  const char* end = digits.data() + digits.size();
  double number = 0;
  const auto result = std::from_chars(begin, end, number);
  if (result.ec != std::errc() || result.ptr != end || begin == end) return std::nullopt;
  return number;
}

std::optional<std::int64_t> whole_part(double number) {
  constexpr double kLimit = 9.2e18;  // below 2^63
  if (!std::isfinite(number) || std::abs(number) > kLimit) return std::nullopt;
  return static_cast<std::int64_t>(number);
}

JinjaValue to_integer(JinjaBudget&, const JinjaValue& value, JinjaArgs& args) {
  const JinjaValue other = args.optional("default").value_or(JinjaValue(std::int64_t{0}));
  if (args.integer_or("base", 10) != 10) throw JinjaFailure("int: base: expected 10");
  args.done();
  value.require_defined();
  std::optional<std::int64_t> number;
  if (const auto* text = value.text()) {
    std::string digits(python_strip(*text, std::nullopt, true, true));
    std::erase(digits, '_');
    const char* begin = digits.data() + (digits.starts_with('+') ? 1 : 0);
    const char* end = digits.data() + digits.size();
    std::int64_t parsed = 0;
    const auto result = std::from_chars(begin, end, parsed);
    if (result.ec == std::errc() && result.ptr == end && begin != end) return JinjaValue(parsed);
    if (const auto real = parse_real(*text)) number = whole_part(*real);
  } else if (value.is_number()) {
    number = value.real() != nullptr ? whole_part(*value.real()) : as_integer(value, "int");
  }
  return number ? JinjaValue(*number) : other;
}

JinjaValue to_real(JinjaBudget&, const JinjaValue& value, JinjaArgs& args) {
  const JinjaValue other = args.optional("default").value_or(JinjaValue(0.0));
  args.done();
  value.require_defined();
  if (value.is_number()) return JinjaValue(as_double(value));
  const auto number = value.text() == nullptr ? std::nullopt : parse_real(*value.text());
  return number ? JinjaValue(*number) : other;
}

/// Python's `text % (arguments)`, of which templates use %s, %d and %%.
JinjaValue format_text(JinjaBudget& budget, const JinjaValue& value, JinjaArgs& args) {
  const std::string format = jinja_text(budget, value);
  std::string out;
  for (std::size_t i = 0; i < format.size(); ++i) {
    if (format[i] != '%') {
      out += format[i];
      continue;
    }
    const char kind = ++i < format.size() ? format[i] : '\0';
    if (kind == '%') {
      out += '%';
    } else if (kind == 's') {
      out += jinja_text(budget, args.required("for %s"));
    } else if (kind == 'd') {
      const JinjaValue number = args.required("for %d");
      const auto whole = number.real() != nullptr ? whole_part(*number.real())
                                                  : std::optional(as_integer(number, "format: %d"));
      if (!whole) throw JinjaFailure("format: %d: too great");
      out += std::to_string(*whole);
    } else {
      throw JinjaFailure("format: only %s, %d and %% are supported");
    }
    if (out.size() > budget.max_text()) budget.spend_text(out.size());  // throws
  }
  args.done();
  budget.spend_text(out.size());
  return JinjaValue::text(std::move(out));
}

JinjaValue round_number(JinjaBudget&, const JinjaValue& value, JinjaArgs& args) {
  const std::int64_t precision = args.integer_or("precision", 0);
  const std::string method = args.text_or("method", "common");
  args.done();
  value.require_defined();
  constexpr std::int64_t kMostDigits = 100;
  if (!value.is_number() || precision < 0 || precision > kMostDigits) {
    throw JinjaFailure("round: expected a number, and a precision from 0 to 100");
  }
  if (method == "common") {
    if (value.real() == nullptr) return value;
    // Printing rounds the exact value half to even, which is what Python does.
    return JinjaValue(parse_real(fmt::format("{:.{}f}", *value.real(), precision)).value_or(0));
  }
  if (method != "ceil" && method != "floor") {
    throw JinjaFailure("round: method: expected common, ceil or floor");
  }
  const double scale = std::pow(10.0, static_cast<double>(precision));
  const double scaled = as_double(value) * scale;
  return JinjaValue((method == "ceil" ? std::ceil(scaled) : std::floor(scaled)) / scale);
}

}  // namespace

std::string jinja_indention(JinjaBudget& budget, const JinjaValue& width) {
  if (const auto* text = width.text()) return *text;
  const std::int64_t spaces = std::max<std::int64_t>(0, as_integer(width, "indent"));
  budget.spend_text(static_cast<std::size_t>(spaces));
  std::string indention(static_cast<std::size_t>(spaces), ' ');
  return indention;
}

const JinjaFilterTable& jinja_value_filters() {
  static const JinjaFilterTable filters = {{"abs", absolute},
                                           {"capitalize", converted<python_capitalize>},
                                           {"d", fallback},
                                           {"default", fallback},
                                           {"float", to_real},
                                           {"format", format_text},
                                           {"from_json", from_json},
                                           {"indent", indent},
                                           {"int", to_integer},
                                           {"lower", converted<python_lower>},
                                           {"replace", replace},
                                           {"round", round_number},
                                           {"safe", as_is},  // nothing is ever escaped
                                           {"string", as_text},
                                           {"title", converted<title_words>},
                                           {"tojson", to_json},
                                           {"trim", trim},
                                           {"upper", converted<python_upper>}};
  return filters;
}

}  // namespace ferry
