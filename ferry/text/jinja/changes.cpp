// Methods that change a list or a mapping. Values never change here, so the variable that holds one
// gets another: others that held the same keep what they had.
#include <fmt/core.h>

#include <algorithm>
#include <array>

#include "ferry/text/jinja/evaluation.h"
#include "ferry/text/jinja/python_text.h"

namespace ferry {

namespace {

constexpr std::array<std::string_view, 3> kChangesOfLists = {"append", "extend", "insert"};
constexpr std::array<std::string_view, 2> kChangesOfDicts = {"setdefault", "update"};

struct Changed {
  JinjaValue whole;   // as it is now
  JinjaValue result;  // of the call
};

/// Where a position of Python's falls among `size` items, one behind the last among them.
std::size_t place_of(std::int64_t at, std::size_t size) {
  const auto count = static_cast<std::int64_t>(size);
  return static_cast<std::size_t>(std::clamp<std::int64_t>(at < 0 ? at + count : at, 0, count));
}

Changed change_list(JinjaBudget& budget,
                    const JinjaList& list,
                    const std::string& name,
                    JinjaArgs& args) {
  std::vector<JinjaValue> items = list.items;
  budget.spend_items(items.size() + 1);
  JinjaValue result;
  if (name == "append") {
    items.push_back(args.required("object"));
  } else if (name == "extend") {
    const JinjaValue::List more = jinja_iterate(budget, args.required("iterable"));
    budget.spend_items(more->items.size());
    items.insert(items.end(), more->items.begin(), more->items.end());
  } else if (name == "insert") {
    const std::size_t at = place_of(as_integer(args.required("index"), "insert"), items.size());
    items.insert(items.begin() + static_cast<std::ptrdiff_t>(at), args.required("object"));
  } else {
    const std::int64_t given = args.integer_or("index", -1);
    const auto count = static_cast<std::int64_t>(items.size());
    const std::int64_t at = given < 0 ? given + count : given;
    if (at < 0 || at >= count) throw JinjaFailure("pop: the list has no such item");
    result = items[static_cast<std::size_t>(at)];
    items.erase(items.begin() + at);
  }
  args.done();
  return {JinjaList::make(std::move(items)), std::move(result)};
}

JinjaKey required_key(JinjaArgs& args) {
  const JinjaValue given = args.required("key");
  if (const auto key = key_of(given)) return owned(*key);
  given.require_defined();
  throw JinjaFailure(
      fmt::format("key: expected a string or an integer, found {}", given.type_name()));
}

Changed change_dict(JinjaBudget& budget,
                    const JinjaDict& dict,
                    const std::string& name,
                    JinjaArgs& args) {
  std::vector<JinjaDict::Entry> entries = dict.entries();
  budget.spend_items(2 * entries.size() + 1);
  JinjaValue result;
  if (name == "update") {
    for (const JinjaValue& given : args.rest()) {
      given.require_defined();
      if (given.dict() == nullptr) {
        throw JinjaFailure(fmt::format("update: expected a mapping, found {}", given.type_name()));
      }
      const auto& more = given.dict()->entries();
      budget.spend_items(2 * more.size());
      entries.insert(entries.end(), more.begin(), more.end());
    }
    for (auto& entry : args.rest_named()) entries.push_back(std::move(entry));
  } else {
    const JinjaKey key = required_key(args);
    auto fallback = args.optional("default");
    const JinjaValue* found = dict.find(view(key));
    if (name == "setdefault") {
      result = found != nullptr ? *found : fallback.value_or(JinjaValue());
      if (found == nullptr) entries.emplace_back(key, result);
    } else {
      if (found == nullptr && !fallback) {
        throw JinjaFailure(fmt::format("pop: the mapping has no '{}'", python_str(to_jinja(key))));
      }
      result = found != nullptr ? *found : *std::move(fallback);
      std::erase_if(entries, [&](const JinjaDict::Entry& entry) { return entry.first == key; });
    }
  }
  args.done();
  return {JinjaDict::make(std::move(entries)), std::move(result)};
}

/// A constant, its negative, or a name.
bool is_fixed(const JinjaExpr& index) {
  const auto* unary = std::get_if<JinjaUnary>(&index.node);
  const JinjaExpr& inner = unary == nullptr ? index : *unary->of;
  return std::holds_alternative<JinjaLiteral>(inner.node) ||
         std::holds_alternative<JinjaName>(inner.node);
}

}  // namespace

bool is_jinja_change(const JinjaValue& value, std::string_view name) {
  const auto among = [&](const auto& names) {
    return name == "pop" || std::find(names.begin(), names.end(), name) != names.end();
  };
  if (value.dict() != nullptr) return among(kChangesOfDicts);
  const JinjaList* list = value.list();
  return list != nullptr && list->kind == JinjaList::Kind::list && among(kChangesOfLists);
}

JinjaValue JinjaEvaluator::change(const JinjaMethodCall& call,
                                  const JinjaValue& of,
                                  JinjaArgs& args,
                                  JinjaScope& scope) {
  Changed changed = of.dict() != nullptr ? change_dict(budget_, *of.dict(), call.name, args)
                                         : change_list(budget_, *of.list(), call.name, args);
  store(*call.of, std::move(changed.whole), scope);
  return std::move(changed.result);
}

/// Puts a value where an expression found the one that it takes the place of. What no variable
/// holds is nobody's to see again.
void JinjaEvaluator::store(const JinjaExpr& expr, JinjaValue changed, JinjaScope& scope) {
  if (const auto* name = std::get_if<JinjaName>(&expr.node)) {
    for (JinjaScope* at = &scope; at != nullptr; at = at->around) {
      for (auto& [known, held] : at->variables) {
        if (known != name->name) continue;
        held = std::move(changed);
        return;
      }
    }
    return;
  }
  const auto* attribute = std::get_if<JinjaAttribute>(&expr.node);
  const auto* item = std::get_if<JinjaItem>(&expr.node);
  if (attribute == nullptr && item == nullptr) return;
  const JinjaExpr& around = attribute != nullptr ? *attribute->of : *item->of;
  // The index is computed once more, so it must be one that computing does not change.
  if (item != nullptr && !is_fixed(*item->index)) {
    throw JinjaFailure(not_supported("changing an element whose index is no name or constant"));
  }
  const JinjaValue index =
      attribute != nullptr ? JinjaValue::text(attribute->name) : value(*item->index, scope);
  const JinjaValue holder = value(around, scope);
  if (auto* space = dynamic_cast<JinjaNamespace*>(holder.object())) {
    if (index.text() != nullptr) space->attributes[*index.text()] = std::move(changed);
  } else if (const auto key = key_of(index); holder.dict() != nullptr && key) {
    std::vector<JinjaDict::Entry> entries = holder.dict()->entries();
    budget_.spend_items(2 * entries.size() + 1);
    entries.emplace_back(owned(*key), std::move(changed));
    store(around, JinjaDict::make(std::move(entries)), scope);
  } else if (holder.list() != nullptr && index.integer() != nullptr) {
    std::vector<JinjaValue> items = holder.list()->items;
    budget_.spend_items(items.size());
    const auto count = static_cast<std::int64_t>(items.size());
    const std::int64_t at = *index.integer() < 0 ? *index.integer() + count : *index.integer();
    // Arguments were computed since the value was found there, and they can make a list shorter.
    if (at < 0 || at >= count) throw JinjaFailure("the changed element is no longer in its list");
    items[static_cast<std::size_t>(at)] = std::move(changed);
    store(around, JinjaList::make(std::move(items), holder.list()->kind), scope);
  }
}

}  // namespace ferry
