// The methods of strings, lists and mappings that templates may call.
#include <fmt/core.h>

#include <algorithm>
#include <map>

#include "ferry/text/jinja/builtins.h"
#include "ferry/text/jinja/python_text.h"
#include "ferry/text/utf8.h"

namespace ferry {

namespace {

using Method = JinjaValue (*)(JinjaBudget& budget, const JinjaValue& value, JinjaArgs& args);
using Methods = std::map<std::string_view, Method, std::less<>>;

JinjaValue of_texts(JinjaBudget& budget, std::vector<std::string> texts) {
  budget.spend_items(texts.size());
  std::vector<JinjaValue> items;
  items.reserve(texts.size());
  for (std::string& text : texts) items.push_back(JinjaValue::text(std::move(text)));
  return JinjaList::make(std::move(items));
}

template <std::string (*convert)(std::string_view)>
JinjaValue converted(JinjaBudget&, const JinjaValue& value, JinjaArgs& args) {
  args.done();
  return JinjaValue::text(convert(*value.text()));
}

/// str.title: a letter behind none is upper case.
std::string title(std::string_view text) {
  std::string out;
  bool inside = false;
  for (std::size_t i = 0; i < text.size(); i += utf8_length(text[i])) {
    const std::string_view c = text.substr(i, utf8_length(text[i]));
    out += inside ? python_lower(c) : python_upper(c);
    inside = is_letter(char_at(text, i));
  }
  return out;
}

template <bool left, bool right>
JinjaValue strip(JinjaBudget&, const JinjaValue& value, JinjaArgs& args) {
  const auto chars = args.optional_text("chars");
  args.done();
  return JinjaValue::text(std::string(python_strip(
      *value.text(), chars ? std::optional<std::string_view>(*chars) : std::nullopt, left, right)));
}

template <bool from_right>
JinjaValue split(JinjaBudget& budget, const JinjaValue& value, JinjaArgs& args) {
  const auto separator = args.optional_text("sep");
  const std::int64_t limit = args.integer_or("maxsplit", -1);
  args.done();
  if (separator && separator->empty()) throw JinjaFailure("split: the separator is empty");
  return of_texts(
      budget,
      python_split(*value.text(),
                   separator ? std::optional<std::string_view>(*separator) : std::nullopt,
                   limit,
                   from_right));
}

JinjaValue split_lines(JinjaBudget& budget, const JinjaValue& value, JinjaArgs& args) {
  args.done();
  return of_texts(budget, python_split_lines(*value.text()));
}

/// The one string, or any of a tuple, at the beginning or the end.
template <bool at_end>
JinjaValue matches_edge(JinjaBudget&, const JinjaValue& value, JinjaArgs& args) {
  const JinjaValue wanted = args.required("prefix");
  args.done();
  const std::string_view text = *value.text();
  const auto matches = [&](const JinjaValue& edge) {
    edge.require_defined();
    if (edge.text() == nullptr) {
      throw JinjaFailure(fmt::format(
          "{}: expected a string, found {}", at_end ? "endswith" : "startswith", edge.type_name()));
    }
    return at_end ? text.ends_with(*edge.text()) : text.starts_with(*edge.text());
  };
  const JinjaList* tuple = wanted.list();
  if (tuple == nullptr || tuple->kind != JinjaList::Kind::tuple) return JinjaValue(matches(wanted));
  return JinjaValue(std::any_of(tuple->items.begin(), tuple->items.end(), matches));
}

template <bool at_end>
JinjaValue remove_edge(JinjaBudget&, const JinjaValue& value, JinjaArgs& args) {
  const std::string edge = args.text(at_end ? "suffix" : "prefix");
  args.done();
  std::string_view text = *value.text();
  if (at_end && text.ends_with(edge)) text.remove_suffix(edge.size());
  if (!at_end && text.starts_with(edge)) text.remove_prefix(edge.size());
  return JinjaValue::text(std::string(text));
}

JinjaValue replace(JinjaBudget& budget, const JinjaValue& value, JinjaArgs& args) {
  const std::string from = args.text("old");
  const std::string to = args.text("new");
  const std::int64_t count = args.integer_or("count", -1);
  args.done();
  return JinjaValue::text(jinja_replace(budget, *value.text(), from, to, count));
}

JinjaValue find(JinjaBudget&, const JinjaValue& value, JinjaArgs& args) {
  const std::string what = args.text("sub");
  args.done();
  const std::size_t found = find_text(*value.text(), what);
  if (found == std::string::npos) return JinjaValue(std::int64_t{-1});
  return JinjaValue(
      static_cast<std::int64_t>(length(std::string_view(*value.text()).substr(0, found))));
}

JinjaValue rfind(JinjaBudget&, const JinjaValue& value, JinjaArgs& args) {
  const std::string what = args.text("sub");
  args.done();
  const std::size_t found = value.text()->rfind(what);
  if (found == std::string::npos) return JinjaValue(std::int64_t{-1});
  return JinjaValue(
      static_cast<std::int64_t>(length(std::string_view(*value.text()).substr(0, found))));
}

JinjaValue count_in_text(JinjaBudget&, const JinjaValue& value, JinjaArgs& args) {
  const std::string what = args.text("sub");
  args.done();
  return JinjaValue(static_cast<std::int64_t>(count_text(*value.text(), what)));
}

JinjaValue join(JinjaBudget& budget, const JinjaValue& value, JinjaArgs& args) {
  const JinjaValue::List items = jinja_iterate(budget, args.required("iterable"));
  args.done();
  for (const JinjaValue& item : items->items) {
    if (item.text() == nullptr) {
      item.require_defined();
      throw JinjaFailure(fmt::format("join: expected strings, found {}", item.type_name()));
    }
  }
  return JinjaValue::text(jinja_join(budget, items->items, *value.text()));
}

JinjaValue format_fields(JinjaBudget& budget, const JinjaValue& value, JinjaArgs& args) {
  const std::vector<JinjaValue> positional = args.rest();
  const JinjaArgs::Named named = args.rest_named();
  return JinjaValue::text(jinja_format(budget, *value.text(), positional, named));
}

JinjaValue get(JinjaBudget&, const JinjaValue& value, JinjaArgs& args) {
  const JinjaValue given = args.required("key");
  const JinjaValue fallback = args.optional("default").value_or(JinjaValue());
  args.done();
  const auto key = key_of(given);
  const JinjaValue* found = key ? value.dict()->find(*key) : nullptr;
  return found == nullptr ? fallback : *found;
}

JinjaValue items(JinjaBudget& budget, const JinjaValue& value, JinjaArgs& args) {
  args.done();
  return jinja_items(budget, *value.dict());
}

JinjaValue keys(JinjaBudget& budget, const JinjaValue& value, JinjaArgs& args) {
  args.done();
  return JinjaValue(jinja_iterate(budget, value));
}

JinjaValue values(JinjaBudget& budget, const JinjaValue& value, JinjaArgs& args) {
  args.done();
  budget.spend_items(value.dict()->entries().size());
  std::vector<JinjaValue> all;
  for (const auto& entry : value.dict()->entries()) all.push_back(entry.second);
  return JinjaList::make(std::move(all));
}

JinjaValue copy(JinjaBudget&, const JinjaValue& value, JinjaArgs& args) {
  args.done();
  return value;
}

JinjaValue count_items(JinjaBudget& budget, const JinjaValue& value, JinjaArgs& args) {
  const JinjaValue what = args.required("value");
  args.done();
  const auto& all = value.list()->items;
  return JinjaValue(static_cast<std::int64_t>(std::count_if(
      all.begin(), all.end(), [&](const JinjaValue& item) { return equal(budget, item, what); })));
}

JinjaValue index(JinjaBudget& budget, const JinjaValue& value, JinjaArgs& args) {
  const JinjaValue what = args.required("value");
  args.done();
  const auto& all = value.list()->items;
  const auto it = std::find_if(
      all.begin(), all.end(), [&](const JinjaValue& item) { return equal(budget, item, what); });
  if (it == all.end()) throw JinjaFailure("index: the value is not in the list");
  return JinjaValue(static_cast<std::int64_t>(it - all.begin()));
}

const Methods& text_methods() {
  static const Methods methods = {{"capitalize", converted<python_capitalize>},
                                  {"count", count_in_text},
                                  {"endswith", matches_edge<true>},
                                  {"find", find},
                                  {"join", join},
                                  {"format", format_fields},
                                  {"lower", converted<python_lower>},
                                  {"lstrip", strip<true, false>},
                                  {"removeprefix", remove_edge<false>},
                                  {"removesuffix", remove_edge<true>},
                                  {"replace", replace},
                                  {"rfind", rfind},
                                  {"rsplit", split<true>},
                                  {"rstrip", strip<false, true>},
                                  {"split", split<false>},
                                  {"splitlines", split_lines},
                                  {"startswith", matches_edge<false>},
                                  {"strip", strip<true, true>},
                                  {"title", converted<title>},
                                  {"upper", converted<python_upper>}};
  return methods;
}

const Methods& dict_methods() {
  static const Methods methods = {
      {"copy", copy}, {"get", get}, {"items", items}, {"keys", keys}, {"values", values}};
  return methods;
}

const Methods& list_methods() {
  static const Methods methods = {{"copy", copy}, {"count", count_items}, {"index", index}};
  return methods;
}

}  // namespace

bool is_jinja_method(std::string_view name) {
  // Those of a loop, and those that change a value (changes.cpp).
  static constexpr std::string_view kOthers[] = {
      "append", "changed", "cycle", "extend", "insert", "pop", "setdefault", "update"};
  if (std::find(std::begin(kOthers), std::end(kOthers), name) != std::end(kOthers)) return true;
  return text_methods().contains(name) || dict_methods().contains(name) ||
         list_methods().contains(name);
}

JinjaValue call_jinja_method(JinjaBudget& budget,
                             const JinjaValue& value,
                             const std::string& name,
                             JinjaArgs& args) {
  value.require_defined();
  const Methods* methods = value.text() != nullptr   ? &text_methods()
                           : value.dict() != nullptr ? &dict_methods()
                           : value.list() != nullptr ? &list_methods()
                                                     : nullptr;
  const auto it = methods == nullptr ? Methods::const_iterator() : methods->find(name);
  if (methods == nullptr || it == methods->end()) {
    throw JinjaFailure(fmt::format("a {} has no method {}", value.type_name(), name));
  }
  if (value.text() != nullptr) budget.spend_text(value.text()->size());
  return it->second(budget, value, args);
}

}  // namespace ferry
