// What templates can call: filters, tests and methods, in tables by name. What is not in a table
// does not exist: the parser tells it, and the evaluator refuses it when it is reached.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "ferry/text/jinja/budget.h"
#include "ferry/text/jinja/value.h"

namespace ferry {

/// The arguments of one call, taken in the order of the parameters, by place or by name.
class JinjaArgs {
 public:
  using Named = std::vector<std::pair<std::string, JinjaValue>>;

  JinjaArgs(std::string callee, std::vector<JinjaValue> positional, Named named)
      : callee_(std::move(callee)), positional_(std::move(positional)), named_(std::move(named)) {}

  /// The next parameter; nothing where it was not given.
  std::optional<JinjaValue> optional(std::string_view name);
  JinjaValue required(std::string_view name);

  std::int64_t integer_or(std::string_view name, std::int64_t fallback);
  bool flag_or(std::string_view name, bool fallback);
  std::string text_or(std::string_view name, std::string_view fallback);
  std::string text(std::string_view name);
  /// Nothing where it was not given or is none.
  std::optional<std::string> optional_text(std::string_view name);

  /// The positional ones that nobody took.
  std::vector<JinjaValue> rest();
  /// The named ones that nobody took.
  Named rest_named();

  /// Throws JinjaFailure for arguments that nobody took.
  void done() const;

 private:
  [[noreturn]] void refuse(std::string_view name,
                           std::string_view expected,
                           const JinjaValue& found) const;

  std::string callee_;
  std::vector<JinjaValue> positional_;
  Named named_;
  std::size_t next_ = 0;  // of positional_
};

using JinjaFilter = JinjaValue (*)(JinjaBudget& budget, const JinjaValue& value, JinjaArgs& args);
using JinjaTest = bool (*)(JinjaBudget& budget, const JinjaValue& value, JinjaArgs& args);

/// How everything that asks for `what` is refused.
std::string not_supported(std::string_view what);

// Null for names that are not supported.
JinjaFilter find_jinja_filter(std::string_view name);
JinjaTest find_jinja_test(std::string_view name);

/// Whether some type has a method of this name that is supported.
bool is_jinja_method(std::string_view name);

/// value.name(args) for text, lists and mappings.
JinjaValue call_jinja_method(JinjaBudget& budget,
                             const JinjaValue& value,
                             const std::string& name,
                             JinjaArgs& args);

/// value.name: the attribute first, then the item, as Jinja does; undefined where there is neither.
JinjaValue jinja_attribute(const JinjaValue& value, const std::string& name);

/// value[index]: the item first, then the attribute.
JinjaValue jinja_item(JinjaBudget& budget, const JinjaValue& value, const JinjaValue& index);

/// What a loop over it sees: items, keys, characters; nothing for undefined.
JinjaValue::List jinja_iterate(JinjaBudget& budget, const JinjaValue& value);

/// Python's `needle in haystack`.
bool jinja_contains(JinjaBudget& budget, const JinjaValue& haystack, const JinjaValue& needle);

/// The (name, value) pairs of a mapping.
JinjaValue jinja_items(JinjaBudget& budget, const JinjaDict& dict);

/// python_replace and Python's join, within the budget.
std::string jinja_replace(JinjaBudget& budget,
                          std::string_view text,
                          std::string_view from,
                          std::string_view to,
                          std::int64_t count);
std::string jinja_join(JinjaBudget& budget,
                       const std::vector<JinjaValue>& items,
                       std::string_view separator);

/// Python's text.format(*positional, **named). Throws JinjaFailure for what Python refuses, and for
/// formats other than of strings, integers and f, e and g.
std::string jinja_format(JinjaBudget& budget,
                         std::string_view text,
                         const std::vector<JinjaValue>& positional,
                         const JinjaArgs::Named& named);

/// Before the value is printed: throws JinjaFailure when its text would be over the limit.
void spend_printing(JinjaBudget& budget, const JinjaValue& value);

/// str(value), within the budget.
std::string jinja_text(JinjaBudget& budget, const JinjaValue& value);

}  // namespace ferry
