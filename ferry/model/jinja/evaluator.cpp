#include "ferry/model/jinja/evaluator.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <deque>

#include "ferry/core/error.h"
#include "ferry/model/jinja/arithmetic.h"
#include "ferry/model/jinja/builtins.h"
#include "ferry/model/jinja/functions.h"

namespace ferry {

namespace {

enum class Flow { normal, leave_loop, next_item };

/// Variables of one block; what is not here is looked for around it.
struct Scope {
  Scope* around = nullptr;
  std::vector<JinjaDict::Entry> variables;
};

class Evaluator {
 public:
  Evaluator(const JinjaLimits& limits, std::optional<std::time_t> now)
      : budget_(limits.steps, limits.max_text), functions_(budget_, now) {}

  std::string run(const JinjaBody& body, std::vector<JinjaDict::Entry> variables);

  int line() const { return line_; }

 private:
  class Depth;

  Flow run_body(const JinjaBody& body, Scope& scope);

  Flow run_statement(const JinjaData& data, Scope& scope);
  Flow run_statement(const JinjaOutput& output, Scope& scope);
  Flow run_statement(const JinjaIf& block, Scope& scope);
  Flow run_statement(const JinjaFor& loop, Scope& scope);
  Flow run_statement(const JinjaSet& set, Scope& scope);
  Flow run_statement(const JinjaSetBlock& set, Scope& scope);
  Flow run_statement(const JinjaMacro& macro, Scope& scope);
  Flow run_statement(const JinjaGeneration& block, Scope& scope);

  static Flow run_statement(const JinjaBreak&, Scope&) { return Flow::leave_loop; }

  static Flow run_statement(const JinjaContinue&, Scope&) { return Flow::next_item; }

  JinjaValue value(const JinjaExpr& expr, Scope& scope);
  JinjaValue value_or_none(const JinjaExprPtr& expr, Scope& scope);

  static JinjaValue evaluate(const JinjaLiteral& literal, Scope&) { return literal.value; }

  JinjaValue evaluate(const JinjaName& name, Scope& scope);
  JinjaValue evaluate(const JinjaListExpr& list, Scope& scope);
  JinjaValue evaluate(const JinjaDictExpr& dict, Scope& scope);
  JinjaValue evaluate(const JinjaAttribute& attribute, Scope& scope);
  JinjaValue evaluate(const JinjaItem& item, Scope& scope);
  JinjaValue evaluate(const JinjaSlice& slice, Scope& scope);
  JinjaValue evaluate(const JinjaFunctionCall& call, Scope& scope);
  JinjaValue evaluate(const JinjaMethodCall& call, Scope& scope);
  JinjaValue evaluate(const JinjaFilterExpr& filter, Scope& scope);
  JinjaValue evaluate(const JinjaTestExpr& test, Scope& scope);
  JinjaValue evaluate(const JinjaUnary& unary, Scope& scope);
  JinjaValue evaluate(const JinjaArithmetic& arithmetic, Scope& scope);
  JinjaValue evaluate(const JinjaComparison& comparison, Scope& scope);
  JinjaValue evaluate(const JinjaLogic& logic, Scope& scope);
  JinjaValue evaluate(const JinjaConcat& concat, Scope& scope);
  JinjaValue evaluate(const JinjaConditional& conditional, Scope& scope);

  bool compare(JinjaComparison::Op op, const JinjaValue& left, const JinjaValue& right);
  JinjaArgs arguments(const std::string& callee, const JinjaArguments& args, Scope& scope);
  JinjaValue call_macro(const JinjaMacro& macro, JinjaArgs args);
  JinjaValue apply(const JinjaFilterExpr& filter, const JinjaValue& to, Scope& scope);
  const JinjaValue* find(std::string_view name, const Scope& scope);
  void assign(const JinjaTarget& target, const JinjaValue& value, Scope& scope);
  static void assign(const std::string& name, JinjaValue value, Scope& scope);
  void print(std::string_view text);
  template <class Fn>
  JinjaValue printed(const Fn& fn);

  JinjaBudget budget_;
  JinjaFunctions functions_;
  std::deque<JinjaMacroObject> macros_;
  std::deque<JinjaLoop> loops_;
  Scope global_;
  std::string out_;
  int line_ = 1;
  int depth_ = 0;
};

/// Macros call macros: counts how deep the program's own recursion is.
class Evaluator::Depth {
 public:
  explicit Depth(Evaluator& evaluator) : evaluator_(evaluator) {
    constexpr int kMaxDepth = 800;
    if (evaluator_.depth_ >= kMaxDepth) throw JinjaFailure("macros call one another too deeply");
    ++evaluator_.depth_;
  }

  ~Depth() { --evaluator_.depth_; }

  Depth(const Depth&) = delete;
  Depth& operator=(const Depth&) = delete;

 private:
  Evaluator& evaluator_;
};

std::string Evaluator::run(const JinjaBody& body, std::vector<JinjaDict::Entry> variables) {
  global_.variables = std::move(variables);
  run_body(body, global_);
  return std::move(out_);
}

void Evaluator::print(std::string_view text) {
  budget_.spend_text(out_.size() + text.size() > budget_.max_text() ? budget_.max_text() + 1
                                                                    : text.size());
  out_ += text;
}

/// What fn prints, as a text instead.
template <class Fn>
JinjaValue Evaluator::printed(const Fn& fn) {
  std::string outer = std::exchange(out_, {});
  fn();
  return JinjaValue::text(std::exchange(out_, std::move(outer)));
}

// --- Statements ----------------------------------------------------------------------------------

Flow Evaluator::run_body(const JinjaBody& body, Scope& scope) {
  const Depth depth(*this);
  for (const JinjaStatement& statement : body) {
    line_ = statement.line;
    budget_.spend();
    const Flow flow =
        std::visit([&](const auto& node) { return run_statement(node, scope); }, statement.node);
    if (flow != Flow::normal) return flow;
  }
  return Flow::normal;
}

Flow Evaluator::run_statement(const JinjaData& data, Scope&) {
  print(data.text);
  return Flow::normal;
}

Flow Evaluator::run_statement(const JinjaOutput& output, Scope& scope) {
  const JinjaValue shown = value(*output.value, scope);
  if (const auto* text = shown.text())
    print(*text);
  else
    print(jinja_text(budget_, shown));
  return Flow::normal;
}

Flow Evaluator::run_statement(const JinjaIf& block, Scope& scope) {
  for (const JinjaIf::Branch& branch : block.branches) {
    if (branch.condition == nullptr || value(*branch.condition, scope).truthy()) {
      return run_body(branch.body, scope);
    }
  }
  return Flow::normal;
}

Flow Evaluator::run_statement(const JinjaFor& loop, Scope& scope) {
  JinjaValue::List items = jinja_iterate(budget_, value(*loop.items, scope));
  if (loop.condition != nullptr) {
    std::vector<JinjaValue> chosen;
    for (const JinjaValue& item : items->items) {
      Scope inner{.around = &scope};
      assign(loop.target, item, inner);
      if (value(*loop.condition, inner).truthy()) chosen.push_back(item);
    }
    budget_.spend_items(chosen.size());
    items = JinjaList::make(std::move(chosen)).shared_list();
  }
  if (items->items.empty()) {
    Scope inner{.around = &scope};
    return run_body(loop.otherwise, inner);
  }
  budget_.spend_items(1);  // the object below lives until the end
  JinjaLoop& state = loops_.emplace_back(budget_, items);
  for (std::size_t i = 0; i < items->items.size(); ++i) {
    state.index = i;
    Scope inner{.around = &scope};
    assign(loop.target, items->items[i], inner);
    assign("loop", JinjaValue(&state), inner);
    if (run_body(loop.body, inner) == Flow::leave_loop) break;
  }
  return Flow::normal;
}

Flow Evaluator::run_statement(const JinjaSet& set, Scope& scope) {
  assign(set.target, value(*set.value, scope), scope);
  return Flow::normal;
}

Flow Evaluator::run_statement(const JinjaSetBlock& set, Scope& scope) {
  JinjaValue text = printed([&] {
    Scope inner{.around = &scope};
    run_body(set.body, inner);
  });
  for (const JinjaExprPtr& filter : set.filters) {
    text = apply(std::get<JinjaFilterExpr>(filter->node), text, scope);
  }
  assign(set.target, text, scope);
  return Flow::normal;
}

Flow Evaluator::run_statement(const JinjaMacro& macro, Scope& scope) {
  budget_.spend_items(1);
  assign(macro.name, JinjaValue(&macros_.emplace_back(macro)), scope);
  return Flow::normal;
}

Flow Evaluator::run_statement(const JinjaGeneration& block, Scope& scope) {
  Scope inner{.around = &scope};
  return run_body(block.body, inner);
}

void Evaluator::assign(const std::string& name, JinjaValue value, Scope& scope) {
  for (auto& [known, held] : scope.variables) {
    if (known == name) {
      held = std::move(value);
      return;
    }
  }
  scope.variables.emplace_back(name, std::move(value));
}

void Evaluator::assign(const JinjaTarget& target, const JinjaValue& value, Scope& scope) {
  if (!target.attribute.empty()) {
    const JinjaValue* held = find(target.names[0], scope);
    auto* space = held == nullptr ? nullptr : dynamic_cast<JinjaNamespace*>(held->object());
    if (space == nullptr) {
      throw JinjaFailure(
          fmt::format("{} is no namespace: its attributes cannot be set", target.names[0]));
    }
    budget_.spend_items(1);
    space->attributes[target.attribute] = value;
    return;
  }
  if (!target.spread) return assign(target.names[0], value, scope);
  const JinjaValue::List parts = jinja_iterate(budget_, value);
  if (parts->items.size() != target.names.size()) {
    throw JinjaFailure(
        fmt::format("{} values for {} variables", parts->items.size(), target.names.size()));
  }
  for (std::size_t i = 0; i < parts->items.size(); ++i) {
    assign(target.names[i], parts->items[i], scope);
  }
}

// --- Expressions ---------------------------------------------------------------------------------

JinjaValue Evaluator::value(const JinjaExpr& expr, Scope& scope) {
  const Depth depth(*this);
  budget_.spend();
  line_ = expr.line;
  return std::visit([&](const auto& node) { return evaluate(node, scope); }, expr.node);
}

JinjaValue Evaluator::value_or_none(const JinjaExprPtr& expr, Scope& scope) {
  return expr == nullptr ? JinjaValue() : value(*expr, scope);
}

const JinjaValue* Evaluator::find(std::string_view name, const Scope& scope) {
  for (const Scope* at = &scope; at != nullptr; at = at->around) {
    budget_.spend(1 + at->variables.size() / 8);
    for (const auto& [known, held] : at->variables) {
      if (known == name) return &held;
    }
  }
  return nullptr;
}

JinjaValue Evaluator::evaluate(const JinjaName& name, Scope& scope) {
  if (const JinjaValue* held = find(name.name, scope)) return *held;
  if (is_jinja_function(name.name)) return JinjaValue(JinjaValue::Function{name.name});
  return JinjaValue::undefined(fmt::format("'{}' is undefined", name.name));
}

JinjaValue Evaluator::evaluate(const JinjaListExpr& list, Scope& scope) {
  std::vector<JinjaValue> items;
  for (const JinjaExprPtr& item : list.items) items.push_back(value(*item, scope));
  budget_.spend_items(items.size());
  return JinjaList::make(std::move(items), list.kind);
}

JinjaValue Evaluator::evaluate(const JinjaDictExpr& dict, Scope& scope) {
  std::vector<JinjaDict::Entry> entries;
  for (const auto& [key_expr, value_expr] : dict.entries) {
    const JinjaValue key = value(*key_expr, scope);
    if (key.text() == nullptr) {
      throw JinjaFailure("keys of mappings other than strings are not supported");
    }
    entries.emplace_back(*key.text(), value(*value_expr, scope));
  }
  budget_.spend_items(2 * entries.size());
  return JinjaDict::make(std::move(entries));
}

JinjaValue Evaluator::evaluate(const JinjaAttribute& attribute, Scope& scope) {
  return jinja_attribute(value(*attribute.of, scope), attribute.name);
}

JinjaValue Evaluator::evaluate(const JinjaItem& item, Scope& scope) {
  const JinjaValue of = value(*item.of, scope);
  return jinja_item(budget_, of, value(*item.index, scope));
}

JinjaValue Evaluator::evaluate(const JinjaSlice& slice, Scope& scope) {
  const JinjaValue of = value(*slice.of, scope);
  const JinjaValue begin = value_or_none(slice.begin, scope);
  const JinjaValue end = value_or_none(slice.end, scope);
  return jinja_slice(budget_, of, begin, end, value_or_none(slice.step, scope));
}

JinjaArgs Evaluator::arguments(const std::string& callee,
                               const JinjaArguments& args,
                               Scope& scope) {
  std::vector<JinjaValue> positional;
  positional.reserve(args.positional.size());
  for (const JinjaExprPtr& arg : args.positional) positional.push_back(value(*arg, scope));
  JinjaArgs::Named named;
  for (const auto& [name, arg] : args.named) named.emplace_back(name, value(*arg, scope));
  return {callee, std::move(positional), std::move(named)};
}

JinjaValue Evaluator::evaluate(const JinjaFunctionCall& call, Scope& scope) {
  const JinjaValue callee = evaluate(JinjaName{call.name}, scope);
  callee.require_defined();
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

JinjaValue Evaluator::call_macro(const JinjaMacro& macro, JinjaArgs args) {
  // Macros stand at the top of the template: around them is only what is global.
  Scope scope{.around = &global_};
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

JinjaValue Evaluator::evaluate(const JinjaMethodCall& call, Scope& scope) {
  const JinjaValue of = value(*call.of, scope);
  JinjaArgs args = arguments(call.name, call.arguments, scope);
  if (auto* loop = dynamic_cast<JinjaLoop*>(of.object())) return loop->call(call.name, args);
  return call_jinja_method(budget_, of, call.name, args);
}

JinjaValue Evaluator::apply(const JinjaFilterExpr& filter, const JinjaValue& to, Scope& scope) {
  JinjaArgs args = arguments(filter.name, filter.arguments, scope);
  return filter.filter(budget_, to, args);
}

JinjaValue Evaluator::evaluate(const JinjaFilterExpr& filter, Scope& scope) {
  return apply(filter, value(*filter.of, scope), scope);
}

JinjaValue Evaluator::evaluate(const JinjaTestExpr& test, Scope& scope) {
  const JinjaValue of = value(*test.of, scope);
  JinjaArgs args = arguments(test.name, test.arguments, scope);
  return JinjaValue(test.test(budget_, of, args));
}

JinjaValue Evaluator::evaluate(const JinjaUnary& unary, Scope& scope) {
  const JinjaValue of = value(*unary.of, scope);
  if (unary.op == JinjaUnary::Op::logical_not) return JinjaValue(!of.truthy());
  const JinjaValue negative = jinja_minus(of);
  return unary.op == JinjaUnary::Op::minus ? negative : jinja_minus(negative);
}

JinjaValue Evaluator::evaluate(const JinjaArithmetic& arithmetic, Scope& scope) {
  const JinjaValue left = value(*arithmetic.left, scope);
  return jinja_arithmetic(budget_, arithmetic.op, left, value(*arithmetic.right, scope));
}

bool Evaluator::compare(JinjaComparison::Op op, const JinjaValue& left, const JinjaValue& right) {
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

JinjaValue Evaluator::evaluate(const JinjaComparison& comparison, Scope& scope) {
  JinjaValue left = value(*comparison.first, scope);
  for (const auto& [op, expr] : comparison.rest) {
    JinjaValue right = value(*expr, scope);
    if (!compare(op, left, right)) return JinjaValue(false);
    left = std::move(right);
  }
  return JinjaValue(true);
}

JinjaValue Evaluator::evaluate(const JinjaLogic& logic, Scope& scope) {
  // As in Python the result is one of the two values, not a truth value.
  JinjaValue left = value(*logic.left, scope);
  return left.truthy() == logic.is_or ? left : value(*logic.right, scope);
}

JinjaValue Evaluator::evaluate(const JinjaConcat& concat, Scope& scope) {
  std::string text;
  for (const JinjaExprPtr& part : concat.parts) {
    text += jinja_text(budget_, value(*part, scope));
    if (text.size() > budget_.max_text()) budget_.spend_text(text.size());  // throws
  }
  return JinjaValue::text(std::move(text));
}

JinjaValue Evaluator::evaluate(const JinjaConditional& conditional, Scope& scope) {
  if (value(*conditional.condition, scope).truthy()) return value(*conditional.yes, scope);
  if (conditional.no != nullptr) return value(*conditional.no, scope);
  return JinjaValue::undefined("an if without else gave no value");
}

}  // namespace

std::string run_jinja(const JinjaBody& body,
                      const std::string& file,
                      std::vector<JinjaDict::Entry> variables,
                      const JinjaLimits& limits,
                      std::optional<std::time_t> now) {
  Evaluator evaluator(limits, now);
  try {
    return evaluator.run(body, std::move(variables));
  } catch (const JinjaFailure& failure) {
    std::string why = failure.what();
    std::replace(why.begin(), why.end(), '\n', ' ');
    fail<ConfigError>("{}: chat template, line {}: {}", file, evaluator.line(), why);
  }
}

}  // namespace ferry
