// What a chat template computes with: Python's values, as far as templates see them. Strings are
// valid UTF-8 and count in characters.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "ferry/text/jinja/budget.h"

namespace ferry {

struct JinjaList;
class JinjaDict;
struct JinjaObject;

/// Immutable; copies share what is inside.
class JinjaValue {
 public:
  struct None {};

  /// What is not there. Prints as nothing, is empty and false; any other use fails with `why`.
  struct Undefined {
    std::shared_ptr<const std::string> why;
  };

  /// A function or method of the language, by its name.
  struct Function {
    std::string name;
  };

  using Text = std::shared_ptr<const std::string>;
  using List = std::shared_ptr<const JinjaList>;
  using Dict = std::shared_ptr<const JinjaDict>;

  JinjaValue() : held_(None{}) {}

  static JinjaValue undefined(std::string why);

  explicit JinjaValue(bool v) : held_(v) {}

  explicit JinjaValue(std::int64_t v) : held_(v) {}

  explicit JinjaValue(double v) : held_(v) {}

  explicit JinjaValue(Function v) : held_(std::move(v)) {}

  /// Borrows the object, which the evaluator owns until rendering ends.
  explicit JinjaValue(JinjaObject* v) : held_(v) {}

  explicit JinjaValue(Dict v) : held_(std::move(v)) {}

  explicit JinjaValue(List v) : held_(std::move(v)) {}

  /// REQUIRES: valid UTF-8.
  static JinjaValue text(std::string v);

  bool is_undefined() const { return std::holds_alternative<Undefined>(held_); }

  bool is_none() const { return std::holds_alternative<None>(held_); }

  // Null where the value is something else.
  const bool* boolean() const { return std::get_if<bool>(&held_); }

  const std::int64_t* integer() const { return std::get_if<std::int64_t>(&held_); }

  const double* real() const { return std::get_if<double>(&held_); }

  const std::string* text() const;
  const JinjaList* list() const;
  const JinjaDict* dict() const;

  const Function* function() const { return std::get_if<Function>(&held_); }

  JinjaObject* object() const;

  List shared_list() const { return std::get<List>(held_); }

  bool is_number() const {
    return boolean() != nullptr || integer() != nullptr || real() != nullptr;
  }

  /// As Python's bool().
  bool truthy() const;

  /// How Python calls the type: "str", "int", "NoneType".
  std::string_view type_name() const;

  /// Levels of lists and dicts inside, 0 for all else.
  int depth() const;

  /// For an undefined value throws JinjaFailure saying why it is; else does nothing.
  void require_defined() const;

 private:
  std::
      variant<None, Undefined, bool, std::int64_t, double, Text, List, Dict, Function, JinjaObject*>
          held_;
};

struct JinjaList {
  enum class Kind {
    list,
    tuple,
    stream,  // what map() and the like give: true whatever is in it, without length
  };

  /// Throws JinjaFailure when it would nest too deep for the program's own recursion.
  static JinjaValue make(std::vector<JinjaValue> items, Kind kind = Kind::list);

  std::vector<JinjaValue> items;
  Kind kind = Kind::list;
  int depth = 1;
};

/// What an entry of a mapping is found by.
using JinjaKey = std::variant<std::string, std::int64_t>;
using JinjaKeyView = std::variant<std::string_view, std::int64_t>;

JinjaKeyView view(const JinjaKey& key);
JinjaKey owned(JinjaKeyView key);

/// The key as a value, which it is where a mapping is iterated over.
JinjaValue to_jinja(const JinjaKey& key);

/// Nothing for what no mapping has as a key here; Python takes some of it.
std::optional<JinjaKeyView> key_of(const JinjaValue& value);

/// From keys to values, in the order in which they came.
class JinjaDict {
 public:
  using Entry = std::pair<JinjaKey, JinjaValue>;

  JinjaDict() = default;
  JinjaDict(const JinjaDict&) = delete;
  JinjaDict& operator=(const JinjaDict&) = delete;

  /// Of two entries with one key the last value counts, at the place of the first. Throws as
  /// JinjaList::make.
  static JinjaValue make(std::vector<Entry> entries);

  /// Null where there is none.
  const JinjaValue* find(JinjaKeyView key) const;

  const std::vector<Entry>& entries() const { return entries_; }

  int depth() const { return depth_; }

 private:
  std::vector<Entry> entries_;
  std::unordered_map<JinjaKeyView, std::size_t> places_;  // views of the keys in entries_
  int depth_ = 1;
};

/// A name and what it stands for, in a scope or among arguments.
using JinjaNamed = std::pair<std::string, JinjaValue>;

/// What has an identity: namespaces, macros, the state of a loop.
struct JinjaObject {
  JinjaObject() = default;
  virtual ~JinjaObject() = default;
  JinjaObject(const JinjaObject&) = delete;
  JinjaObject& operator=(const JinjaObject&) = delete;

  virtual std::string_view type_name() const = 0;
  /// obj.name
  virtual JinjaValue attribute(const std::string& name) const = 0;
};

/// Python's ==.
bool equal(JinjaBudget& budget, const JinjaValue& a, const JinjaValue& b);

/// Python's <. Throws JinjaFailure for what has no order.
bool less(JinjaBudget& budget, const JinjaValue& a, const JinjaValue& b);

/// The number as a double. REQUIRES: is_number().
double as_double(const JinjaValue& value);

/// An integer or a truth value, which counts as one; throws JinjaFailure naming `what` for all
/// else.
std::int64_t as_integer(const JinjaValue& value, std::string_view what);

/// Throws JinjaFailure for what templates cannot hold: integers beyond 64 bits, binary values, deep
/// nesting.
JinjaValue to_jinja(const nlohmann::ordered_json& value);

// Text in characters.

/// The number of characters.
std::size_t length(std::string_view text);

/// Where every character starts, and the end.
std::vector<std::size_t> character_starts(std::string_view text);

/// As Python's str.isspace.
bool is_python_space(char32_t c);

}  // namespace ferry
