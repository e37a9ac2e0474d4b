// Filters of sequences and mappings.
#include <fmt/core.h>

#include <algorithm>
#include <charconv>

#include "ferry/text/jinja/arithmetic.h"
#include "ferry/text/jinja/filter_tables.h"
#include "ferry/text/jinja/python_text.h"

namespace ferry {

namespace {

using Items = std::vector<JinjaValue>;

/// What `attribute` of a filter says: a.b.0 goes into the items of items. Without one the value
/// itself.
class Getter {
 public:
  explicit Getter(const std::optional<JinjaValue>& attribute) {
    if (!attribute || attribute->is_none()) return;
    if (attribute->integer() != nullptr) {
      parts_.push_back(*attribute);
      return;
    }
    if (attribute->text() == nullptr) {
      throw JinjaFailure(
          fmt::format("attribute: expected a name, found {}", attribute->type_name()));
    }
    for (const std::string& part : python_split(*attribute->text(), ".", -1, false)) {
      std::int64_t number = 0;
      const auto result = std::from_chars(part.data(), part.data() + part.size(), number);
      const bool whole = result.ec == std::errc() && result.ptr == part.data() + part.size();
      parts_.push_back(whole && part[0] != '-' ? JinjaValue(number) : JinjaValue::text(part));
    }
  }

  JinjaValue operator()(JinjaBudget& budget, JinjaValue value) const {
    for (const JinjaValue& part : parts_) value = jinja_item(budget, value, part);
    return value;
  }

 private:
  Items parts_;
};

/// What values are compared by: strings without their case, unless it counts.
JinjaValue sort_key(JinjaBudget& budget, const JinjaValue& value, bool case_sensitive) {
  if (case_sensitive || value.text() == nullptr) return value;
  budget.spend_text(value.text()->size());
  return JinjaValue::text(python_lower(*value.text()));
}

struct Keyed {
  JinjaValue key, value;
};

void sort_keyed(JinjaBudget& budget, std::vector<Keyed>& items, bool reverse) {
  // Python sorts stably also in reverse: equal items keep their order.
  std::stable_sort(items.begin(), items.end(), [&](const Keyed& a, const Keyed& b) {
    return reverse ? less(budget, b.key, a.key) : less(budget, a.key, b.key);
  });
}

JinjaValue values_of(std::vector<Keyed> keyed) {
  Items items;
  items.reserve(keyed.size());
  for (Keyed& item : keyed) items.push_back(std::move(item.value));
  return JinjaList::make(std::move(items));
}

JinjaValue count(JinjaBudget&, const JinjaValue& value, JinjaArgs& args) {
  args.done();
  std::size_t size = 0;
  if (const auto* text = value.text()) {
    size = length(*text);
  } else if (const auto* dict = value.dict()) {
    size = dict->entries().size();
  } else if (value.list() != nullptr && value.list()->kind != JinjaList::Kind::stream) {
    size = value.list()->items.size();
  } else if (!value.is_undefined()) {
    throw JinjaFailure(fmt::format("a {} has no length", value.type_name()));
  }
  return JinjaValue(static_cast<std::int64_t>(size));
}

JinjaValue first(JinjaBudget& budget, const JinjaValue& value, JinjaArgs& args) {
  args.done();
  const JinjaValue::List items = jinja_iterate(budget, value);
  return items->items.empty() ? JinjaValue::undefined("first: there is no item")
                              : items->items.front();
}

JinjaValue last(JinjaBudget& budget, const JinjaValue& value, JinjaArgs& args) {
  args.done();
  if (value.list() != nullptr && value.list()->kind == JinjaList::Kind::stream) {
    throw JinjaFailure("last: a generator goes forwards only; | list comes before");
  }
  value.require_defined();
  const JinjaValue::List items = jinja_iterate(budget, value);
  return items->items.empty() ? JinjaValue::undefined("last: there is no item")
                              : items->items.back();
}

JinjaValue items(JinjaBudget& budget, const JinjaValue& value, JinjaArgs& args) {
  args.done();
  if (value.is_undefined()) return JinjaList::make({}, JinjaList::Kind::stream);
  if (value.dict() == nullptr) {
    throw JinjaFailure(fmt::format("items: expected a mapping, found {}", value.type_name()));
  }
  return jinja_items(budget, *value.dict());
}

JinjaValue join(JinjaBudget& budget, const JinjaValue& value, JinjaArgs& args) {
  const std::string separator =
      jinja_text(budget, args.optional("d").value_or(JinjaValue::text("")));
  const Getter get(args.optional("attribute"));
  args.done();
  Items parts = jinja_iterate(budget, value)->items;
  for (JinjaValue& part : parts) part = get(budget, std::move(part));
  return JinjaValue::text(jinja_join(budget, parts, separator));
}

JinjaValue to_list(JinjaBudget& budget, const JinjaValue& value, JinjaArgs& args) {
  args.done();
  Items all = jinja_iterate(budget, value)->items;
  budget.spend_items(all.size());
  return JinjaList::make(std::move(all));
}

JinjaValue reverse(JinjaBudget& budget, const JinjaValue& value, JinjaArgs& args) {
  args.done();
  Items all = jinja_iterate(budget, value)->items;
  budget.spend_items(all.size());
  std::reverse(all.begin(), all.end());
  if (value.text() != nullptr) return JinjaValue::text(jinja_join(budget, all, ""));
  return JinjaList::make(std::move(all), JinjaList::Kind::stream);
}

JinjaValue sort(JinjaBudget& budget, const JinjaValue& value, JinjaArgs& args) {
  const bool backwards = args.flag_or("reverse", false);
  const bool case_sensitive = args.flag_or("case_sensitive", false);
  const Getter get(args.optional("attribute"));
  args.done();
  const JinjaValue::List all = jinja_iterate(budget, value);
  budget.spend_items(2 * all->items.size());
  std::vector<Keyed> keyed;
  for (const JinjaValue& item : all->items) {
    keyed.push_back({sort_key(budget, get(budget, item), case_sensitive), item});
  }
  sort_keyed(budget, keyed, backwards);
  return values_of(std::move(keyed));
}

JinjaValue sort_dict(JinjaBudget& budget, const JinjaValue& value, JinjaArgs& args) {
  const bool case_sensitive = args.flag_or("case_sensitive", false);
  const std::string by = args.text_or("by", "key");
  const bool backwards = args.flag_or("reverse", false);
  args.done();
  value.require_defined();
  if (value.dict() == nullptr || (by != "key" && by != "value")) {
    throw JinjaFailure("dictsort: expected a mapping, and by=\"key\" or by=\"value\"");
  }
  std::vector<Keyed> keyed;
  const JinjaValue pairs = jinja_items(budget, *value.dict());
  for (const JinjaValue& pair : pairs.list()->items) {
    keyed.push_back(
        {sort_key(budget, pair.list()->items[by == "key" ? 0 : 1], case_sensitive), pair});
  }
  sort_keyed(budget, keyed, backwards);
  return values_of(std::move(keyed));
}

template <bool greatest>
JinjaValue extreme(JinjaBudget& budget, const JinjaValue& value, JinjaArgs& args) {
  const bool case_sensitive = args.flag_or("case_sensitive", false);
  const Getter get(args.optional("attribute"));
  args.done();
  const JinjaValue::List all = jinja_iterate(budget, value);
  if (all->items.empty()) return JinjaValue::undefined("min, max: there is no item");
  const auto key = [&](const JinjaValue& item) {
    return sort_key(budget, get(budget, item), case_sensitive);
  };
  const JinjaValue* best = &all->items[0];
  JinjaValue best_key = key(*best);
  for (const JinjaValue& item : all->items) {
    JinjaValue item_key = key(item);
    const bool better =
        greatest ? less(budget, best_key, item_key) : less(budget, item_key, best_key);
    if (!better) continue;
    best = &item;
    best_key = std::move(item_key);
  }
  return *best;
}

JinjaValue sum(JinjaBudget& budget, const JinjaValue& value, JinjaArgs& args) {
  const Getter get(args.optional("attribute"));
  JinjaValue total = args.optional("start").value_or(JinjaValue(std::int64_t{0}));
  args.done();
  if (total.text() != nullptr) throw JinjaFailure("sum: strings are joined, not summed");
  const JinjaValue::List all = jinja_iterate(budget, value);
  for (const JinjaValue& item : all->items) {
    total = jinja_arithmetic(budget, '+', total, get(budget, item));
  }
  return total;
}

JinjaValue unique(JinjaBudget& budget, const JinjaValue& value, JinjaArgs& args) {
  const bool case_sensitive = args.flag_or("case_sensitive", false);
  const Getter get(args.optional("attribute"));
  args.done();
  const JinjaValue::List all = jinja_iterate(budget, value);
  Items seen;
  Items kept;
  for (const JinjaValue& item : all->items) {
    JinjaValue key = sort_key(budget, get(budget, item), case_sensitive);
    if (std::any_of(seen.begin(), seen.end(), [&](const JinjaValue& other) {
          return equal(budget, key, other);
        })) {
      continue;
    }
    seen.push_back(std::move(key));
    kept.push_back(item);
  }
  return JinjaList::make(std::move(kept), JinjaList::Kind::stream);
}

JinjaValue map(JinjaBudget& budget, const JinjaValue& value, JinjaArgs& args) {
  Items given = args.rest();
  JinjaArgs::Named named = args.rest_named();
  Items out;
  // As in Jinja: nothing for anything that is false, none among it, whatever the arguments are.
  if (!value.truthy()) return JinjaList::make({}, JinjaList::Kind::stream);
  const JinjaValue::List all = jinja_iterate(budget, value);
  budget.spend_items(all->items.size());
  if (given.empty()) {
    JinjaArgs own("map", {}, std::move(named));
    const Getter get(own.required("attribute"));
    const JinjaValue fallback = own.optional("default").value_or(JinjaValue());
    own.done();
    for (const JinjaValue& item : all->items) {
      JinjaValue got = get(budget, item);
      if (got.is_undefined() && !fallback.is_none()) got = fallback;
      out.push_back(std::move(got));
    }
    return JinjaList::make(std::move(out), JinjaList::Kind::stream);
  }
  const std::string* name = given[0].text();
  const JinjaFilter filter = name == nullptr ? nullptr : find_jinja_filter(*name);
  if (filter == nullptr) {
    throw JinjaFailure(
        fmt::format("map: filter {} is not supported", name == nullptr ? "?" : *name));
  }
  given.erase(given.begin());
  for (const JinjaValue& item : all->items) {
    JinjaArgs inner(*name, given, named);
    out.push_back(filter(budget, item, inner));
  }
  return JinjaList::make(std::move(out), JinjaList::Kind::stream);
}

/// select and reject, by the items themselves or by an attribute of theirs.
template <bool by_attribute, bool keep>
JinjaValue select(JinjaBudget& budget, const JinjaValue& value, JinjaArgs& args) {
  if (!value.truthy()) return JinjaList::make({}, JinjaList::Kind::stream);
  const Getter get(by_attribute ? std::optional(args.required("attribute")) : std::nullopt);
  const auto name = args.optional_text("test");
  const JinjaTest test = name ? find_jinja_test(*name) : nullptr;
  if (name && test == nullptr) {
    throw JinjaFailure(fmt::format("select: test {} is not supported", *name));
  }
  const Items rest = args.rest();
  const JinjaArgs::Named named = args.rest_named();
  const JinjaValue::List all = jinja_iterate(budget, value);
  Items kept;
  for (const JinjaValue& item : all->items) {
    const JinjaValue looked_at = get(budget, item);
    JinjaArgs inner(name.value_or(""), rest, named);
    const bool chosen = test == nullptr ? looked_at.truthy() : test(budget, looked_at, inner);
    if (chosen == keep) kept.push_back(item);
  }
  budget.spend_items(kept.size());
  return JinjaList::make(std::move(kept), JinjaList::Kind::stream);
}

}  // namespace

const JinjaFilterTable& jinja_list_filters() {
  static const JinjaFilterTable filters = {{"count", count},
                                           {"dictsort", sort_dict},
                                           {"first", first},
                                           {"items", items},
                                           {"join", join},
                                           {"last", last},
                                           {"length", count},
                                           {"list", to_list},
                                           {"map", map},
                                           {"max", extreme<true>},
                                           {"min", extreme<false>},
                                           {"reject", select<false, false>},
                                           {"rejectattr", select<true, false>},
                                           {"reverse", reverse},
                                           {"select", select<false, true>},
                                           {"selectattr", select<true, true>},
                                           {"sort", sort},
                                           {"sum", sum},
                                           {"unique", unique}};
  return filters;
}

JinjaFilter find_jinja_filter(std::string_view name) {
  for (const JinjaFilterTable* table : {&jinja_value_filters(), &jinja_list_filters()}) {
    const auto it = table->find(name);
    if (it != table->end()) return it->second;
  }
  return nullptr;
}

}  // namespace ferry
