// How Python writes values: str(), repr(), json.dumps(), and what str's methods do.
#pragma once

#include <ctime>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "ferry/text/jinja/value.h"

namespace ferry {

/// str(value), which is what {{ }} prints. Throws JinjaFailure for what has no text (a macro).
std::string python_str(const JinjaValue& value);

/// repr(value).
std::string python_repr(const JinjaValue& value);

struct JsonStyle {
  bool ensure_ascii = false;
  std::optional<std::string> indent;  // what a level is indented by; none: all on one line
  std::string item_separator = ", ";  // between items; with indent ","
  std::string key_separator = ": ";
  bool sort_keys = false;
};

/// json.dumps(value). Throws JinjaFailure for what JSON cannot hold.
std::string python_json(const JinjaValue& value, const JsonStyle& style);

/// A double as repr() writes it: the shortest that reads back the same.
std::string python_float(double value);

/// Without the characters of `chars` (white space where none are given) at either end.
std::string_view python_strip(std::string_view text,
                              std::optional<std::string_view> chars,
                              bool left,
                              bool right);

/// Simple case mapping, a character for a character, but for ß whose upper case is SS.
std::string python_upper(std::string_view text);
std::string python_lower(std::string_view text);

/// First character upper, the rest lower case.
std::string python_capitalize(std::string_view text);

/// All occurrences, or the first `count` where that is not negative.
std::string python_replace(std::string_view text,
                           std::string_view from,
                           std::string_view to,
                           std::int64_t count);

/// At most `limit` cuts (negative: any number), from the left or from the right. Without separator
/// at runs of white space. The separator must not be empty.
std::vector<std::string> python_split(std::string_view text,
                                      std::optional<std::string_view> separator,
                                      std::int64_t limit,
                                      bool from_right);

/// Lines without what ends them.
std::vector<std::string> python_split_lines(std::string_view text);

/// The byte where `what` is first found, npos where it is not. Linear in the sizes.
std::size_t find_text(std::string_view text, std::string_view what, std::size_t from = 0);

/// How often `what` occurs, without overlap. An empty one is around every character.
std::size_t count_text(std::string_view text, std::string_view what);

/// datetime.strftime of a moment, in local time.
std::string python_strftime(const std::string& format, std::time_t when);

}  // namespace ferry
