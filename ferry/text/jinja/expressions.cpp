#include <fmt/core.h>

#include "ferry/text/jinja/arithmetic.h"
#include "ferry/text/jinja/evaluation.h"

namespace ferry {

JinjaValue JinjaEvaluator::value(const JinjaExpr& expr, JinjaScope& scope) {
  const Depth depth(*this);
  budget_.spend();
  line_ = expr.line;
  return std::visit([&](const auto& node) { return evaluate(node, scope); }, expr.node);
}

JinjaValue JinjaEvaluator::value_or_none(const JinjaExprPtr& expr, JinjaScope& scope) {
  return expr == nullptr ? JinjaValue() : value(*expr, scope);
}

const JinjaValue* JinjaEvaluator::find(std::string_view name, const JinjaScope& scope) {
  for (const JinjaScope* at = &scope; at != nullptr; at = at->around) {
    budget_.spend(1 + at->variables.size() / 8);
    for (const auto& [known, held] : at->variables) {
      if (known == name) return &held;
    }
  }
  return nullptr;
}

JinjaValue JinjaEvaluator::evaluate(const JinjaName& name, JinjaScope& scope) {
  if (const JinjaValue* held = find(name.name, scope)) return *held;
  if (is_jinja_function(name.name)) return JinjaValue(JinjaValue::Function{name.name});
  return JinjaValue::undefined(fmt::format("'{}' is undefined", name.name));
}

JinjaValue JinjaEvaluator::evaluate(const JinjaListExpr& list, JinjaScope& scope) {
  std::vector<JinjaValue> items;
  for (const JinjaExprPtr& item : list.items) items.push_back(value(*item, scope));
  budget_.spend_items(items.size());
  return JinjaList::make(std::move(items), list.kind);
}

JinjaValue JinjaEvaluator::evaluate(const JinjaDictExpr& dict, JinjaScope& scope) {
  std::vector<JinjaDict::Entry> entries;
  for (const auto& [key_expr, value_expr] : dict.entries) {
    const JinjaValue key = value(*key_expr, scope);
    const auto found = key_of(key);
    if (!found) {
      throw JinjaFailure(not_supported("a key that is neither a string nor an integer"));
    }
    entries.emplace_back(owned(*found), value(*value_expr, scope));
  }
  budget_.spend_items(2 * entries.size());
  return JinjaDict::make(std::move(entries));
}

JinjaValue JinjaEvaluator::evaluate(const JinjaAttribute& attribute, JinjaScope& scope) {
  return jinja_attribute(value(*attribute.of, scope), attribute.name);
}

JinjaValue JinjaEvaluator::evaluate(const JinjaItem& item, JinjaScope& scope) {
  const JinjaValue of = value(*item.of, scope);
  return jinja_item(budget_, of, value(*item.index, scope));
}

JinjaValue JinjaEvaluator::evaluate(const JinjaSlice& slice, JinjaScope& scope) {
  const JinjaValue of = value(*slice.of, scope);
  const JinjaValue begin = value_or_none(slice.begin, scope);
  const JinjaValue end = value_or_none(slice.end, scope);
  return jinja_slice(budget_, of, begin, end, value_or_none(slice.step, scope));
}

JinjaValue JinjaEvaluator::evaluate(const JinjaUnsupported& unsupported, JinjaScope&) {
  throw JinjaFailure(not_supported(unsupported.what));
}

JinjaArgs JinjaEvaluator::arguments(const std::string& callee,
                                    const JinjaArguments& args,
                                    JinjaScope& scope) {
  std::vector<JinjaValue> positional;
  positional.reserve(args.positional.size());
  for (const JinjaExprPtr& arg : args.positional) positional.push_back(value(*arg, scope));
  JinjaArgs::Named named;
  for (const auto& [name, arg] : args.named) named.emplace_back(name, value(*arg, scope));
  return {callee, std::move(positional), std::move(named)};
}

JinjaValue JinjaEvaluator::evaluate(const JinjaFunctionCall& call, JinjaScope& scope) {
  const JinjaValue callee = evaluate(JinjaName{call.name}, scope);
  if (callee.is_undefined()) {
    throw JinjaFailure(not_supported(fmt::format("function {}()", call.name)));
  }
  JinjaArgs args = arguments(call.name, call.arguments, scope);
  if (const auto* macro = dynamic_cast<const JinjaMacroObject*>(callee.object())) {
    return call_macro(macro->macro, std::move(args));
  }
  if (callee.function() == nullptr || !is_jinja_function(callee.function()->name)) {
    throw JinjaFailure(
        fmt::format("{} is a {}, which cannot be called", call.name, callee.type_name()));
  }
  return functions_.call(callee.function()->name, args);
}

JinjaValue JinjaEvaluator::call_macro(const JinjaMacro& macro, JinjaArgs args) {
  // Macros stand at the top of the template: around them is only what is global.
  JinjaScope scope{.around = &global_};
  for (const JinjaMacro::Parameter& parameter : macro.parameters) {
    if (auto given = args.optional(parameter.name)) {
      assign(parameter.name, *std::move(given), scope);
    } else if (parameter.fallback != nullptr) {
      assign(parameter.name, value(*parameter.fallback, scope), scope);
    } else {
      assign(parameter.name,
             JinjaValue::undefined(fmt::format("parameter '{}' was not provided", parameter.name)),
             scope);
    }
  }
  args.done();
  return printed([&] { run_body(macro.body, scope); });
}

JinjaValue JinjaEvaluator::evaluate(const JinjaMethodCall& call, JinjaScope& scope) {
  const JinjaValue of = value(*call.of, scope);
  of.require_defined();
  if (!is_jinja_method(call.name)) {
    throw JinjaFailure(not_supported(fmt::format("method .{}()", call.name)));
  }
  JinjaArgs args = arguments(call.name, call.arguments, scope);
  if (auto* loop = dynamic_cast<JinjaLoop*>(of.object())) return loop->call(call.name, args);
  if (is_jinja_change(of, call.name)) return change(call, of, args, scope);
  return call_jinja_method(budget_, of, call.name, args);
}

JinjaValue JinjaEvaluator::apply(const JinjaFilterExpr& filter,
                                 const JinjaValue& to,
                                 JinjaScope& scope) {
  if (filter.filter == nullptr) throw JinjaFailure(not_supported("filter " + filter.name));
  JinjaArgs args = arguments(filter.name, filter.arguments, scope);
  return filter.filter(budget_, to, args);
}

JinjaValue JinjaEvaluator::evaluate(const JinjaFilterExpr& filter, JinjaScope& scope) {
  return apply(filter, value(*filter.of, scope), scope);
}

JinjaValue JinjaEvaluator::evaluate(const JinjaTestExpr& test, JinjaScope& scope) {
  if (test.test == nullptr) throw JinjaFailure(not_supported("test " + test.name));
  const JinjaValue of = value(*test.of, scope);
  JinjaArgs args = arguments(test.name, test.arguments, scope);
  return JinjaValue(test.test(budget_, of, args));
}

JinjaValue JinjaEvaluator::evaluate(const JinjaUnary& unary, JinjaScope& scope) {
  const JinjaValue of = value(*unary.of, scope);
  if (unary.op == JinjaUnary::Op::logical_not) return JinjaValue(!of.truthy());
  const JinjaValue negative = jinja_minus(of);
  return unary.op == JinjaUnary::Op::minus ? negative : jinja_minus(negative);
}

JinjaValue JinjaEvaluator::evaluate(const JinjaArithmetic& arithmetic, JinjaScope& scope) {
  const JinjaValue left = value(*arithmetic.left, scope);
  return jinja_arithmetic(budget_, arithmetic.op, left, value(*arithmetic.right, scope));
}

bool JinjaEvaluator::compare(JinjaComparison::Op op,
                             const JinjaValue& left,
                             const JinjaValue& right) {
  switch (op) {
    case JinjaComparison::Op::eq:
      return equal(budget_, left, right);
    case JinjaComparison::Op::ne:
      return !equal(budget_, left, right);
    case JinjaComparison::Op::lt:
      return less(budget_, left, right);
    case JinjaComparison::Op::le:
      return !less(budget_, right, left);
    case JinjaComparison::Op::gt:
      return less(budget_, right, left);
    case JinjaComparison::Op::ge:
      return !less(budget_, left, right);
    case JinjaComparison::Op::in:
      return jinja_contains(budget_, right, left);
    default:
      return !jinja_contains(budget_, right, left);
  }
}

JinjaValue JinjaEvaluator::evaluate(const JinjaComparison& comparison, JinjaScope& scope) {
  JinjaValue left = value(*comparison.first, scope);
  for (const auto& [op, expr] : comparison.rest) {
    JinjaValue right = value(*expr, scope);
    if (!compare(op, left, right)) return JinjaValue(false);
    left = std::move(right);
  }
  return JinjaValue(true);
}

JinjaValue JinjaEvaluator::evaluate(const JinjaLogic& logic, JinjaScope& scope) {
  // As in Python the result is one of the two values, not a truth value.
  JinjaValue left = value(*logic.left, scope);
  return left.truthy() == logic.is_or ? left : value(*logic.right, scope);
}

JinjaValue JinjaEvaluator::evaluate(const JinjaConcat& concat, JinjaScope& scope) {
  std::string text;
  for (const JinjaExprPtr& part : concat.parts) {
    text += jinja_text(budget_, value(*part, scope));
    if (text.size() > budget_.max_text()) budget_.spend_text(text.size());  // throws
  }
  return JinjaValue::text(std::move(text));
}

JinjaValue JinjaEvaluator::evaluate(const JinjaConditional& conditional, JinjaScope& scope) {
  if (value(*conditional.condition, scope).truthy()) return value(*conditional.yes, scope);
  if (conditional.no != nullptr) return value(*conditional.no, scope);
  return JinjaValue::undefined("an if without else gave no value");
}

}  // namespace ferry
