#include "ferry/text/jinja/builtins.h"

#include <fmt/core.h>

#include <algorithm>
#include <span>

#include "ferry/text/jinja/python_text.h"
#include "ferry/text/utf8.h"

namespace ferry {

namespace {

using Names = std::span<const std::string_view>;

bool among(Names names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// What Python's types have that does not change them. Methods that would are, if they are not
// called, undefined as in the sandbox that transformers renders in, even where an entry has that
// name.
constexpr std::string_view kDictMethods[] = {"copy", "fromkeys", "get", "items", "keys", "values"};
constexpr std::string_view kDictChanges[] = {"clear", "pop", "popitem", "setdefault", "update"};
constexpr std::string_view kListMethods[] = {"copy", "count", "index"};
constexpr std::string_view kTextMethods[] = {
    "capitalize",   "casefold",     "center",  "count",     "encode",     "endswith",
    "expandtabs",   "find",         "format",  "index",     "isalnum",    "isalpha",
    "isascii",      "isdecimal",    "isdigit", "islower",   "isspace",    "istitle",
    "isupper",      "join",         "ljust",   "lower",     "lstrip",     "partition",
    "removeprefix", "removesuffix", "replace", "rfind",     "rindex",     "rjust",
    "rpartition",   "rsplit",       "rstrip",  "split",     "splitlines", "startswith",
    "strip",        "swapcase",     "title",   "translate", "upper",      "zfill"};

JinjaValue no_attribute(const JinjaValue& value, const std::string& name) {
  return JinjaValue::undefined(fmt::format("a {} has no '{}'", value.type_name(), name));
}

/// Whether `value` has a method of this name in Python, supported here or not.
bool has_method(const JinjaValue& value, std::string_view name) {
  if (value.dict() != nullptr) return among(kDictMethods, name);
  if (value.text() != nullptr) return among(kTextMethods, name);
  return value.list() != nullptr && among(kListMethods, name);
}

}  // namespace

void JinjaArgs::refuse(std::string_view name,
                       std::string_view expected,
                       const JinjaValue& found) const {
  found.require_defined();
  throw JinjaFailure(
      fmt::format("{}: {}: expected {}, found {}", callee_, name, expected, found.type_name()));
}

std::optional<JinjaValue> JinjaArgs::optional(std::string_view name) {
  if (next_ < positional_.size()) return positional_[next_++];
  const auto it = std::find_if(
      named_.begin(), named_.end(), [&](const auto& arg) { return arg.first == name; });
  if (it == named_.end()) return std::nullopt;
  JinjaValue value = std::move(it->second);
  named_.erase(it);
  return value;
}

JinjaValue JinjaArgs::required(std::string_view name) {
  auto value = optional(name);
  if (!value) throw JinjaFailure(fmt::format("{}: argument {} is missing", callee_, name));
  return *std::move(value);
}

std::int64_t JinjaArgs::integer_or(std::string_view name, std::int64_t fallback) {
  const auto value = optional(name);
  return value ? as_integer(*value, fmt::format("{}: {}", callee_, name)) : fallback;
}

bool JinjaArgs::flag_or(std::string_view name, bool fallback) {
  const auto value = optional(name);
  return value ? value->truthy() : fallback;
}

std::string JinjaArgs::text(std::string_view name) {
  const JinjaValue value = required(name);
  if (value.text() == nullptr) refuse(name, "a string", value);
  return *value.text();
}

std::optional<std::string> JinjaArgs::optional_text(std::string_view name) {
  const auto value = optional(name);
  if (!value || value->is_none()) return std::nullopt;
  if (value->text() == nullptr) refuse(name, "a string", *value);
  return *value->text();
}

std::string JinjaArgs::text_or(std::string_view name, std::string_view fallback) {
  const auto value = optional(name);
  if (value && value->text() == nullptr) refuse(name, "a string", *value);
  return value ? *value->text() : std::string(fallback);
}

std::vector<JinjaValue> JinjaArgs::rest() {
  std::vector<JinjaValue> left(positional_.begin() + static_cast<std::ptrdiff_t>(next_),
                               positional_.end());
  next_ = positional_.size();
  return left;
}

JinjaArgs::Named JinjaArgs::rest_named() { return std::exchange(named_, {}); }

void JinjaArgs::done() const {
  if (next_ < positional_.size()) {
    throw JinjaFailure(fmt::format("{}: takes no more than {} arguments", callee_, next_));
  }
  if (!named_.empty()) {
    throw JinjaFailure(fmt::format("{}: argument {} is not supported", callee_, named_[0].first));
  }
}

std::string not_supported(std::string_view what) {
  return fmt::format("{} is not supported", what);
}

JinjaValue jinja_attribute(const JinjaValue& value, const std::string& name) {
  value.require_defined();
  if (const JinjaObject* object = value.object()) return object->attribute(name);
  if (has_method(value, name)) return JinjaValue(JinjaValue::Function{name});
  if (const JinjaDict* dict = value.dict(); dict != nullptr && !among(kDictChanges, name)) {
    if (const JinjaValue* found = dict->find(name)) return *found;
  }
  return no_attribute(value, name);
}

JinjaValue jinja_item(JinjaBudget& budget, const JinjaValue& value, const JinjaValue& index) {
  value.require_defined();
  if (const JinjaDict* dict = value.dict()) {
    const auto key = key_of(index);
    if (const JinjaValue* found = key ? dict->find(*key) : nullptr) return *found;
  }
  if (const std::string* name = index.text()) return jinja_attribute(value, *name);
  const bool whole = index.integer() != nullptr || index.boolean() != nullptr;
  const auto at = [&](std::size_t size) {
    const std::int64_t i = as_integer(index, "index");
    const std::int64_t from_front = i < 0 ? i + static_cast<std::int64_t>(size) : i;
    return from_front < 0 || from_front >= static_cast<std::int64_t>(size)
               ? std::optional<std::size_t>()
               : std::optional(static_cast<std::size_t>(from_front));
  };
  const auto* list = value.list();
  if (whole && list != nullptr && list->kind != JinjaList::Kind::stream) {
    if (const auto i = at(list->items.size())) return list->items[*i];
  } else if (whole && value.text() != nullptr) {
    budget.spend_text(value.text()->size());
    const std::vector<std::size_t> starts = character_starts(*value.text());
    if (const auto i = at(starts.size() - 1)) {
      return JinjaValue::text(value.text()->substr(starts[*i], starts[*i + 1] - starts[*i]));
    }
  }
  return JinjaValue::undefined(fmt::format("a {} has no such element", value.type_name()));
}

JinjaValue::List jinja_iterate(JinjaBudget& budget, const JinjaValue& value) {
  if (value.list() != nullptr) {
    budget.spend(1 + value.list()->items.size());
    return value.shared_list();
  }
  std::vector<JinjaValue> items;
  if (const auto* text = value.text()) {
    budget.spend_items(2 * text->size());
    const std::vector<std::size_t> starts = character_starts(*text);
    for (std::size_t i = 0; i + 1 < starts.size(); ++i) {
      items.push_back(JinjaValue::text(text->substr(starts[i], starts[i + 1] - starts[i])));
    }
  } else if (const auto* dict = value.dict()) {
    budget.spend_items(dict->entries().size());
    for (const auto& entry : dict->entries()) items.push_back(to_jinja(entry.first));
  } else if (!value.is_undefined()) {
    throw JinjaFailure(fmt::format("a {} cannot be iterated over", value.type_name()));
  }
  return JinjaList::make(std::move(items)).shared_list();
}

bool jinja_contains(JinjaBudget& budget, const JinjaValue& haystack, const JinjaValue& needle) {
  if (const auto* text = haystack.text()) {
    if (needle.text() == nullptr) {
      needle.require_defined();
      throw JinjaFailure(fmt::format("only strings are in a string, not a {}", needle.type_name()));
    }
    budget.spend_text(text->size());
    return find_text(*text, *needle.text()) != std::string::npos;
  }
  if (const auto* dict = haystack.dict()) {
    const auto key = key_of(needle);
    return key && dict->find(*key) != nullptr;
  }
  const JinjaValue::List items = jinja_iterate(budget, haystack);
  return std::any_of(items->items.begin(), items->items.end(), [&](const JinjaValue& item) {
    return equal(budget, item, needle);
  });
}

JinjaValue jinja_items(JinjaBudget& budget, const JinjaDict& dict) {
  budget.spend_items(3 * dict.entries().size());
  std::vector<JinjaValue> pairs;
  pairs.reserve(dict.entries().size());
  for (const auto& [key, value] : dict.entries()) {
    pairs.push_back(JinjaList::make({to_jinja(key), value}, JinjaList::Kind::tuple));
  }
  return JinjaList::make(std::move(pairs));
}

std::string jinja_replace(JinjaBudget& budget,
                          std::string_view text,
                          std::string_view from,
                          std::string_view to,
                          std::int64_t count) {
  budget.spend_text(text.size());
  const std::size_t found = count_text(text, from);
  const std::size_t replaced = count < 0 ? found : std::min(found, static_cast<std::size_t>(count));
  budget.spend_text(text.size() - replaced * from.size() + replaced * to.size());
  return python_replace(text, from, to, count);
}

std::string jinja_join(JinjaBudget& budget,
                       const std::vector<JinjaValue>& items,
                       std::string_view separator) {
  std::string out;
  for (std::size_t i = 0; i < items.size(); ++i) {
    if (i > 0) out += separator;
    out += jinja_text(budget, items[i]);
    budget.spend(1 + separator.size() / 16);
    if (out.size() > budget.max_text()) budget.spend_text(out.size());  // throws
  }
  return out;
}

namespace {

/// Adds the bytes of all texts in a value; shared parts count as often as they would be printed.
void add_text(JinjaBudget& budget, const JinjaValue& value, std::size_t& bytes) {
  budget.spend();
  if (const auto* text = value.text()) bytes += text->size();
  if (bytes > budget.max_text()) budget.spend_text(bytes);  // throws
  if (const auto* list = value.list()) {
    for (const JinjaValue& item : list->items) add_text(budget, item, bytes);
  } else if (const auto* dict = value.dict()) {
    for (const auto& [key, item] : dict->entries()) {
      if (const auto* name = std::get_if<std::string>(&key)) bytes += name->size();
      add_text(budget, item, bytes);
    }
  }
}

}  // namespace

void spend_printing(JinjaBudget& budget, const JinjaValue& value) {
  std::size_t bytes = 0;
  add_text(budget, value, bytes);
  budget.spend_text(bytes);
}

std::string jinja_text(JinjaBudget& budget, const JinjaValue& value) {
  spend_printing(budget, value);
  return python_str(value);
}

}  // namespace ferry
