#include "ferry/text/jinja/functions.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>

#include "ferry/text/jinja/evaluator.h"
#include "ferry/text/jinja/python_text.h"

namespace ferry {

namespace {

constexpr std::array<std::string_view, 5> kFunctions = {
    "dict", "namespace", "raise_exception", "range", "strftime_now"};

/// The entries that namespace() and dict() begin with: a mapping, then named arguments.
std::vector<JinjaDict::Entry> initial_entries(JinjaBudget& budget, JinjaArgs& args) {
  std::vector<JinjaDict::Entry> entries;
  for (const JinjaValue& given : args.rest()) {
    if (given.dict() == nullptr || !entries.empty()) {
      given.require_defined();
      throw JinjaFailure(fmt::format("expected one mapping, found {}", given.type_name()));
    }
    entries = given.dict()->entries();
  }
  for (auto& [name, value] : args.rest_named()) entries.emplace_back(name, std::move(value));
  budget.spend_items(2 * entries.size() + 1);
  return entries;
}

}  // namespace

bool is_jinja_function(std::string_view name) {
  return std::find(kFunctions.begin(), kFunctions.end(), name) != kFunctions.end();
}

JinjaValue JinjaNamespace::attribute(const std::string& name) const {
  const auto it = attributes.find(name);
  if (it != attributes.end()) return it->second;
  return JinjaValue::undefined(fmt::format("the namespace has no '{}'", name));
}

JinjaValue JinjaMacroObject::attribute(const std::string& name) const {
  return JinjaValue::undefined(fmt::format("macro {} has no '{}'", macro.name, name));
}

JinjaValue JinjaLoop::attribute(const std::string& name) const {
  const auto number = [](std::size_t n) { return JinjaValue(static_cast<std::int64_t>(n)); };
  const std::size_t size = items->items.size();
  if (name == "index") return number(index + 1);
  if (name == "index0") return number(index);
  if (name == "revindex") return number(size - index);
  if (name == "revindex0") return number(size - index - 1);
  if (name == "length") return number(size);
  if (name == "depth") return number(1);
  if (name == "depth0") return number(0);
  if (name == "first") return JinjaValue(index == 0);
  if (name == "last") return JinjaValue(index + 1 == size);
  if (name == "previtem" && index > 0) return items->items[index - 1];
  if (name == "nextitem" && index + 1 < size) return items->items[index + 1];
  if (name == "cycle" || name == "changed") return JinjaValue(JinjaValue::Function{name});
  return JinjaValue::undefined(fmt::format("there is no loop.{} here", name));
}

JinjaValue JinjaLoop::call(const std::string& name, JinjaArgs& args) {
  std::vector<JinjaValue> given = args.rest();
  args.done();
  if (name == "cycle") {
    if (given.empty()) throw JinjaFailure("loop.cycle: expected values to choose from");
    return given[index % given.size()];
  }
  if (name != "changed") throw JinjaFailure(fmt::format("a loop has no method {}", name));
  JinjaValue now = JinjaList::make(std::move(given), JinjaList::Kind::tuple);
  if (last_changed && equal(budget, *last_changed, now)) return JinjaValue(false);
  last_changed = std::move(now);
  return JinjaValue(true);
}

JinjaValue JinjaFunctions::call(const std::string& name, JinjaArgs& args) {
  if (name == "range") return range(args);
  if (name == "namespace") return make_namespace(args);
  if (name == "dict") return make_dict(args);
  if (name == "strftime_now") return strftime_now(args);
  raise(args);
}

JinjaValue JinjaFunctions::range(JinjaArgs& args) {
  constexpr std::uint64_t kLongest = 100000;  // that of Jinja's sandbox
  std::int64_t begin = 0;
  std::int64_t end = as_integer(args.required("stop"), "range");
  if (const auto second = args.optional("stop")) {
    begin = end;
    end = as_integer(*second, "range");
  }
  const std::int64_t step = args.integer_or("step", 1);
  args.done();
  if (step == 0) throw JinjaFailure("range: the step is 0");
  // Unsigned: the distance of two integers may not fit a signed one.
  const bool empty = step > 0 ? begin >= end : begin <= end;
  const std::uint64_t distance =
      step > 0 ? static_cast<std::uint64_t>(end) - static_cast<std::uint64_t>(begin)
               : static_cast<std::uint64_t>(begin) - static_cast<std::uint64_t>(end);
  const std::uint64_t stride =
      step > 0 ? static_cast<std::uint64_t>(step) : 0 - static_cast<std::uint64_t>(step);
  const std::uint64_t size = empty ? 0 : (distance - 1) / stride + 1;
  if (size > kLongest) throw JinjaFailure(fmt::format("range: more than {} numbers", kLongest));
  budget_.spend_items(size);
  std::vector<JinjaValue> numbers;
  for (std::uint64_t i = 0; i < size; ++i) {
    numbers.emplace_back(begin + static_cast<std::int64_t>(i) * step);
  }
  return JinjaList::make(std::move(numbers));
}

JinjaValue JinjaFunctions::make_namespace(JinjaArgs& args) {
  std::vector<JinjaDict::Entry> entries = initial_entries(budget_, args);
  JinjaNamespace& space = namespaces_.emplace_back();
  for (auto& [key, value] : entries) {
    const auto* name = std::get_if<std::string>(&key);
    if (name == nullptr) throw JinjaFailure("namespace: names are strings");
    space.attributes[*name] = std::move(value);
  }
  return JinjaValue(&space);
}

JinjaValue JinjaFunctions::make_dict(JinjaArgs& args) {
  return JinjaDict::make(initial_entries(budget_, args));
}

JinjaValue JinjaFunctions::strftime_now(JinjaArgs& args) const {
  const std::string format = args.text("format");
  args.done();
  return JinjaValue::text(python_strftime(format, now_.value_or(std::time(nullptr))));
}

void JinjaFunctions::raise(JinjaArgs& args) {
  const JinjaValue message = args.required("message");
  args.done();
  throw JinjaFailure(
      fmt::format("the template refuses these messages: {}", jinja_text(budget_, message)));
}

}  // namespace ferry
