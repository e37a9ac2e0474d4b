// Tests: what may stand behind `is`.
#include <fmt/core.h>

#include <map>

#include "ferry/text/jinja/builtins.h"
#include "ferry/text/jinja/python_text.h"
#include "ferry/text/utf8.h"

namespace ferry {

namespace {

using Tests = std::map<std::string_view, JinjaTest, std::less<>>;

/// A test that looks at the value alone.
template <bool (*test)(const JinjaValue&)>
bool plain(JinjaBudget&, const JinjaValue& value, JinjaArgs& args) {
  args.done();
  return test(value);
}

bool is_defined(const JinjaValue& v) { return !v.is_undefined(); }

bool is_undefined(const JinjaValue& v) { return v.is_undefined(); }

bool is_none(const JinjaValue& v) { return v.is_none(); }

bool is_boolean(const JinjaValue& v) { return v.boolean() != nullptr; }

bool is_true(const JinjaValue& v) { return v.boolean() != nullptr && *v.boolean(); }

bool is_false(const JinjaValue& v) { return v.boolean() != nullptr && !*v.boolean(); }

bool is_integer(const JinjaValue& v) { return v.integer() != nullptr; }

bool is_float(const JinjaValue& v) { return v.real() != nullptr; }

bool is_number(const JinjaValue& v) { return v.is_number(); }

bool is_string(const JinjaValue& v) { return v.text() != nullptr; }

bool is_mapping(const JinjaValue& v) { return v.dict() != nullptr; }

bool is_callable(const JinjaValue& v) {
  return v.function() != nullptr || (v.object() != nullptr && v.type_name() == "macro");
}

bool is_iterable(const JinjaValue& v) {
  return v.text() != nullptr || v.list() != nullptr || v.dict() != nullptr || v.is_undefined();
}

bool is_sequence(const JinjaValue& v) {
  return v.text() != nullptr || v.dict() != nullptr ||
         (v.list() != nullptr && v.list()->kind != JinjaList::Kind::stream);
}

/// Whether there are letters with a case, all of them this one.
template <std::string (*convert)(std::string_view)>
bool has_case(JinjaBudget& budget, const JinjaValue& value, JinjaArgs& args) {
  args.done();
  const std::string text = jinja_text(budget, value);
  return convert(text) == text && python_upper(text) != python_lower(text);
}

bool divides(JinjaBudget&, const JinjaValue& value, JinjaArgs& args) {
  const std::int64_t by = as_integer(args.required("num"), "divisibleby");
  args.done();
  if (by == 0) throw JinjaFailure("division by zero");
  return by == -1 || as_integer(value, "divisibleby") % by == 0;
}

template <bool odd>
bool parity(JinjaBudget&, const JinjaValue& value, JinjaArgs& args) {
  args.done();
  return (as_integer(value, odd ? "odd" : "even") % 2 != 0) == odd;
}

bool is_in(JinjaBudget& budget, const JinjaValue& value, JinjaArgs& args) {
  const JinjaValue where = args.required("seq");
  args.done();
  return jinja_contains(budget, where, value);
}

bool eq(JinjaBudget& budget, const JinjaValue& value, JinjaArgs& args) {
  const JinjaValue other = args.required("other");
  args.done();
  return equal(budget, value, other);
}

bool ne(JinjaBudget& budget, const JinjaValue& value, JinjaArgs& args) {
  return !eq(budget, value, args);
}

template <bool swap, bool negate>
bool ordered(JinjaBudget& budget, const JinjaValue& value, JinjaArgs& args) {
  const JinjaValue other = args.required("other");
  args.done();
  return (swap ? less(budget, other, value) : less(budget, value, other)) != negate;
}

/// Identity: of the constants and objects; other values share their insides by chance only.
bool same_as(JinjaBudget& budget, const JinjaValue& value, JinjaArgs& args) {
  const JinjaValue other = args.required("other");
  args.done();
  return value.type_name() == other.type_name() && equal(budget, value, other);
}

template <bool filter>
bool names(JinjaBudget&, const JinjaValue& value, JinjaArgs& args) {
  args.done();
  const std::string* name = value.text();
  if (name == nullptr) return false;
  return filter ? find_jinja_filter(*name) != nullptr : find_jinja_test(*name) != nullptr;
}

const Tests& all_tests() {
  static const Tests tests = {{"!=", ne},
                              {"<", ordered<false, false>},
                              {"<=", ordered<true, true>},
                              {"==", eq},
                              {">", ordered<true, false>},
                              {">=", ordered<false, true>},
                              {"boolean", plain<is_boolean>},
                              {"callable", plain<is_callable>},
                              {"defined", plain<is_defined>},
                              {"divisibleby", divides},
                              {"eq", eq},
                              {"equalto", eq},
                              {"even", parity<false>},
                              {"false", plain<is_false>},
                              {"filter", names<true>},
                              {"float", plain<is_float>},
                              {"ge", ordered<false, true>},
                              {"greaterthan", ordered<true, false>},
                              {"gt", ordered<true, false>},
                              {"in", is_in},
                              {"integer", plain<is_integer>},
                              {"iterable", plain<is_iterable>},
                              {"le", ordered<true, true>},
                              {"lessthan", ordered<false, false>},
                              {"lower", has_case<python_lower>},
                              {"lt", ordered<false, false>},
                              {"mapping", plain<is_mapping>},
                              {"ne", ne},
                              {"none", plain<is_none>},
                              {"number", plain<is_number>},
                              {"odd", parity<true>},
                              {"sameas", same_as},
                              {"sequence", plain<is_sequence>},
                              {"string", plain<is_string>},
                              {"test", names<false>},
                              {"true", plain<is_true>},
                              {"undefined", plain<is_undefined>},
                              {"upper", has_case<python_upper>}};
  return tests;
}

}  // namespace

JinjaTest find_jinja_test(std::string_view name) {
  const auto it = all_tests().find(name);
  return it == all_tests().end() ? nullptr : it->second;
}

}  // namespace ferry
