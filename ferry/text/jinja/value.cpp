#include "ferry/text/jinja/value.h"

#include <fmt/core.h>

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>

#include "ferry/text/utf8.h"

namespace ferry {

namespace {

// Deeper values are no chat; printing, comparing and freeing them recurse.
constexpr int kMaxDepth = 100;
// Up to here a dict is searched from the front.
constexpr std::size_t kSmallDict = 8;

void check_depth(int depth) {
  if (depth > kMaxDepth) {
    throw JinjaFailure(fmt::format("lists and mappings nest deeper than {} levels", kMaxDepth));
  }
}

[[noreturn]] void no_order(const JinjaValue& a, const JinjaValue& b) {
  throw JinjaFailure(fmt::format("{} and {} have no order", a.type_name(), b.type_name()));
}

bool equal_dicts(JinjaBudget& budget, const JinjaDict& a, const JinjaDict& b) {
  if (a.entries().size() != b.entries().size()) return false;
  return std::all_of(a.entries().begin(), a.entries().end(), [&](const JinjaDict::Entry& entry) {
    const JinjaValue* other = b.find(view(entry.first));
    return other != nullptr && equal(budget, entry.second, *other);
  });
}

}  // namespace

JinjaValue JinjaValue::undefined(std::string why) {
  JinjaValue value;
  value.held_ = Undefined{std::make_shared<const std::string>(std::move(why))};
  return value;
}

JinjaValue JinjaValue::text(std::string v) {
  JinjaValue value;
  value.held_ = std::make_shared<const std::string>(std::move(v));
  return value;
}

const std::string* JinjaValue::text() const {
  const auto* held = std::get_if<Text>(&held_);
  return held == nullptr ? nullptr : held->get();
}

const JinjaList* JinjaValue::list() const {
  const auto* held = std::get_if<List>(&held_);
  return held == nullptr ? nullptr : held->get();
}

const JinjaDict* JinjaValue::dict() const {
  const auto* held = std::get_if<Dict>(&held_);
  return held == nullptr ? nullptr : held->get();
}

JinjaObject* JinjaValue::object() const {
  const auto* held = std::get_if<JinjaObject*>(&held_);
  return held == nullptr ? nullptr : *held;
}

bool JinjaValue::truthy() const {
  if (is_undefined() || is_none()) return false;
  if (const auto* v = boolean()) return *v;
  if (const auto* v = integer()) return *v != 0;
  if (const auto* v = real()) return *v != 0;
  if (const auto* v = text()) return !v->empty();
  if (const auto* v = list()) return v->kind == JinjaList::Kind::stream || !v->items.empty();
  if (const auto* v = dict()) return !v->entries().empty();
  return true;
}

std::string_view JinjaValue::type_name() const {
  if (is_undefined()) return "undefined";
  if (is_none()) return "None";
  if (boolean() != nullptr) return "bool";
  if (integer() != nullptr) return "int";
  if (real() != nullptr) return "float";
  if (text() != nullptr) return "str";
  if (dict() != nullptr) return "dict";
  if (function() != nullptr) return "function";
  if (const JinjaObject* v = object()) return v->type_name();
  switch (list()->kind) {
    case JinjaList::Kind::tuple:
      return "tuple";
    case JinjaList::Kind::stream:
      return "generator";
    default:
      return "list";
  }
}

int JinjaValue::depth() const {
  if (const auto* v = list()) return v->depth;
  if (const auto* v = dict()) return v->depth();
  return 0;
}

void JinjaValue::require_defined() const {
  if (const auto* v = std::get_if<Undefined>(&held_)) throw JinjaFailure(*v->why);
}

JinjaValue JinjaList::make(std::vector<JinjaValue> items, Kind kind) {
  auto list = std::make_shared<JinjaList>();
  for (const JinjaValue& item : items) list->depth = std::max(list->depth, item.depth() + 1);
  check_depth(list->depth);
  list->items = std::move(items);
  list->kind = kind;
  return JinjaValue(JinjaValue::List(std::move(list)));
}

JinjaValue JinjaDict::make(std::vector<Entry> entries) {
  auto dict = std::make_shared<JinjaDict>();
  dict->entries_.reserve(entries.size());  // the views in places_ stay good
  std::unordered_map<JinjaKeyView, std::size_t> places;
  places.reserve(entries.size());
  for (Entry& entry : entries) {
    dict->depth_ = std::max(dict->depth_, entry.second.depth() + 1);
    const auto it = places.find(view(entry.first));
    if (it != places.end()) {
      dict->entries_[it->second].second = std::move(entry.second);
      continue;
    }
    dict->entries_.push_back(std::move(entry));
    places.emplace(view(dict->entries_.back().first), dict->entries_.size() - 1);
  }
  check_depth(dict->depth_);
  if (dict->entries_.size() > kSmallDict) dict->places_ = std::move(places);
  return JinjaValue(JinjaValue::Dict(std::move(dict)));
}

JinjaKeyView view(const JinjaKey& key) {
  if (const auto* number = std::get_if<std::int64_t>(&key)) return *number;
  return std::string_view(std::get<std::string>(key));
}

JinjaKey owned(JinjaKeyView key) {
  if (const auto* number = std::get_if<std::int64_t>(&key)) return *number;
  return std::string(std::get<std::string_view>(key));
}

JinjaValue to_jinja(const JinjaKey& key) {
  if (const auto* number = std::get_if<std::int64_t>(&key)) return JinjaValue(*number);
  return JinjaValue::text(std::get<std::string>(key));
}

std::optional<JinjaKeyView> key_of(const JinjaValue& value) {
  if (value.text() != nullptr) return std::string_view(*value.text());
  if (value.integer() != nullptr) return *value.integer();
  return std::nullopt;
}

const JinjaValue* JinjaDict::find(JinjaKeyView key) const {
  if (entries_.size() > kSmallDict) {
    const auto it = places_.find(key);
    return it == places_.end() ? nullptr : &entries_[it->second].second;
  }
  const auto it = std::find_if(entries_.begin(), entries_.end(), [&](const Entry& entry) {
    return view(entry.first) == key;
  });
  return it == entries_.end() ? nullptr : &it->second;
}

bool equal(JinjaBudget& budget, const JinjaValue& a, const JinjaValue& b) {
  budget.spend();
  if (a.is_number() && b.is_number()) {
    if (a.real() == nullptr && b.real() == nullptr) return as_integer(a, "") == as_integer(b, "");
    return as_double(a) == as_double(b);
  }
  if (a.text() != nullptr && b.text() != nullptr) return *a.text() == *b.text();
  if (a.list() != nullptr && b.list() != nullptr) {
    return a.list()->kind == b.list()->kind &&
           std::equal(
               a.list()->items.begin(),
               a.list()->items.end(),
               b.list()->items.begin(),
               b.list()->items.end(),
               [&](const JinjaValue& x, const JinjaValue& y) { return equal(budget, x, y); });
  }
  if (a.dict() != nullptr && b.dict() != nullptr) return equal_dicts(budget, *a.dict(), *b.dict());
  if (a.object() != nullptr) return a.object() == b.object();
  if (a.function() != nullptr && b.function() != nullptr) {
    return a.function()->name == b.function()->name;
  }
  return (a.is_none() && b.is_none()) || (a.is_undefined() && b.is_undefined());
}

bool less(JinjaBudget& budget, const JinjaValue& a, const JinjaValue& b) {
  budget.spend();
  a.require_defined();
  b.require_defined();
  if (a.is_number() && b.is_number()) {
    if (a.real() == nullptr && b.real() == nullptr) return as_integer(a, "") < as_integer(b, "");
    return as_double(a) < as_double(b);
  }
  // The order of UTF-8's bytes is that of its characters.
  if (a.text() != nullptr && b.text() != nullptr) return *a.text() < *b.text();
  if (a.list() == nullptr || b.list() == nullptr || a.list()->kind != b.list()->kind) {
    no_order(a, b);
  }
  const auto& left = a.list()->items;
  const auto& right = b.list()->items;
  for (std::size_t i = 0; i < std::min(left.size(), right.size()); ++i) {
    if (!equal(budget, left[i], right[i])) return less(budget, left[i], right[i]);
  }
  return left.size() < right.size();
}

double as_double(const JinjaValue& value) {
  if (const auto* v = value.real()) return *v;
  return static_cast<double>(as_integer(value, "a number"));
}

std::int64_t as_integer(const JinjaValue& value, std::string_view what) {
  if (const auto* v = value.boolean()) return *v ? 1 : 0;
  if (const auto* v = value.integer()) return *v;
  value.require_defined();
  throw JinjaFailure(fmt::format("{}: expected an integer, found {}", what, value.type_name()));
}

namespace {

JinjaValue convert(const nlohmann::ordered_json& value, int depth) {
  check_depth(depth);
  switch (value.type()) {
    case nlohmann::ordered_json::value_t::null:
      return {};
    case nlohmann::ordered_json::value_t::boolean:
      return JinjaValue(value.get<bool>());
    case nlohmann::ordered_json::value_t::number_integer:
      return JinjaValue(value.get<std::int64_t>());
    case nlohmann::ordered_json::value_t::number_unsigned:
      if (value.get<std::uint64_t>() > std::numeric_limits<std::int64_t>::max()) {
        throw JinjaFailure(
            fmt::format("integers of 64 bits only, found {}", value.get<std::uint64_t>()));
      }
      return JinjaValue(value.get<std::int64_t>());
    case nlohmann::ordered_json::value_t::number_float:
      return JinjaValue(value.get<double>());
    case nlohmann::ordered_json::value_t::string:
      return JinjaValue::text(repair_utf8(value.get_ref<const std::string&>()));
    case nlohmann::ordered_json::value_t::array: {
      std::vector<JinjaValue> items;
      items.reserve(value.size());
      for (const auto& item : value) items.push_back(convert(item, depth + 1));
      return JinjaList::make(std::move(items));
    }
    case nlohmann::ordered_json::value_t::object: {
      std::vector<JinjaDict::Entry> entries;
      entries.reserve(value.size());
      for (const auto& [name, item] : value.items()) {
        entries.emplace_back(repair_utf8(name), convert(item, depth + 1));
      }
      return JinjaDict::make(std::move(entries));
    }
    default:
      throw JinjaFailure("JSON values only, found bytes");
  }
}

}  // namespace

JinjaValue to_jinja(const nlohmann::ordered_json& value) { return convert(value, 0); }

std::size_t length(std::string_view text) {
  return static_cast<std::size_t>(std::count_if(text.begin(), text.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  }));
}

std::vector<std::size_t> character_starts(std::string_view text) {
  std::vector<std::size_t> starts;
  starts.reserve(text.size() + 1);
  for (std::size_t i = 0; i < text.size(); i += utf8_length(text[i])) starts.push_back(i);
  starts.push_back(text.size());
  return starts;
}

bool is_python_space(char32_t c) { return is_white_space(c) || (c >= 0x1C && c <= 0x1F); }

}  // namespace ferry
