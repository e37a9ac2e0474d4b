#include "ferry/text/jinja/evaluator.h"

#include <fmt/core.h>

#include <algorithm>

#include "ferry/core/error.h"
#include "ferry/text/jinja/evaluation.h"

namespace ferry {

std::string JinjaEvaluator::run(const JinjaBody& body, std::vector<JinjaNamed> variables) {
  global_.variables = std::move(variables);
  run_body(body, global_);
  return std::move(out_);
}

void JinjaEvaluator::print(std::string_view text) {
  budget_.spend_text(out_.size() + text.size() > budget_.max_text() ? budget_.max_text() + 1
                                                                    : text.size());
  out_ += text;
}

JinjaFlow JinjaEvaluator::run_body(const JinjaBody& body, JinjaScope& scope) {
  const Depth depth(*this);
  for (const JinjaStatement& statement : body) {
    line_ = statement.line;
    budget_.spend();
    const JinjaFlow flow =
        std::visit([&](const auto& node) { return run_statement(node, scope); }, statement.node);
    if (flow != JinjaFlow::normal) return flow;
  }
  return JinjaFlow::normal;
}

JinjaFlow JinjaEvaluator::run_statement(const JinjaData& data, JinjaScope&) {
  print(data.text);
  return JinjaFlow::normal;
}

JinjaFlow JinjaEvaluator::run_statement(const JinjaOutput& output, JinjaScope& scope) {
  const JinjaValue shown = value(*output.value, scope);
  if (const auto* text = shown.text())
    print(*text);
  else
    print(jinja_text(budget_, shown));
  return JinjaFlow::normal;
}

JinjaFlow JinjaEvaluator::run_statement(const JinjaIf& block, JinjaScope& scope) {
  for (const JinjaIf::Branch& branch : block.branches) {
    if (branch.condition == nullptr || value(*branch.condition, scope).truthy()) {
      return run_body(branch.body, scope);
    }
  }
  return JinjaFlow::normal;
}

JinjaFlow JinjaEvaluator::run_statement(const JinjaFor& loop, JinjaScope& scope) {
  JinjaValue::List items = jinja_iterate(budget_, value(*loop.items, scope));
  if (loop.condition != nullptr) {
    std::vector<JinjaValue> chosen;
    for (const JinjaValue& item : items->items) {
      JinjaScope inner{.around = &scope};
      assign(loop.target, item, inner);
      if (value(*loop.condition, inner).truthy()) chosen.push_back(item);
    }
    budget_.spend_items(chosen.size());
    items = JinjaList::make(std::move(chosen)).shared_list();
  }
  if (items->items.empty()) {
    JinjaScope inner{.around = &scope};
    return run_body(loop.otherwise, inner);
  }
  budget_.spend_items(1);  // the object below lives until the end
  JinjaLoop& state = loops_.emplace_back(budget_, items);
  for (std::size_t i = 0; i < items->items.size(); ++i) {
    state.index = i;
    JinjaScope inner{.around = &scope};
    assign(loop.target, items->items[i], inner);
    assign("loop", JinjaValue(&state), inner);
    if (run_body(loop.body, inner) == JinjaFlow::leave_loop) break;
  }
  return JinjaFlow::normal;
}

JinjaFlow JinjaEvaluator::run_statement(const JinjaSet& set, JinjaScope& scope) {
  assign(set.target, value(*set.value, scope), scope);
  return JinjaFlow::normal;
}

JinjaFlow JinjaEvaluator::run_statement(const JinjaSetBlock& set, JinjaScope& scope) {
  assign(set.target, filtered(set.body, set.filters, scope), scope);
  return JinjaFlow::normal;
}

JinjaFlow JinjaEvaluator::run_statement(const JinjaMacro& macro, JinjaScope& scope) {
  budget_.spend_items(1);
  assign(macro.name, JinjaValue(&macros_.emplace_back(macro)), scope);
  return JinjaFlow::normal;
}

JinjaFlow JinjaEvaluator::run_statement(const JinjaGeneration& block, JinjaScope& scope) {
  JinjaScope inner{.around = &scope};
  return run_body(block.body, inner);
}

JinjaFlow JinjaEvaluator::run_statement(const JinjaDo& statement, JinjaScope& scope) {
  value(*statement.value, scope);
  return JinjaFlow::normal;
}

JinjaFlow JinjaEvaluator::run_statement(const JinjaWith& block, JinjaScope& scope) {
  JinjaScope inner{.around = &scope};
  std::vector<JinjaValue> values;  // none of which sees the others' names
  for (const auto& [name, expr] : block.variables) values.push_back(value(*expr, scope));
  for (std::size_t i = 0; i < values.size(); ++i) {
    assign(block.variables[i].first, std::move(values[i]), inner);
  }
  return run_body(block.body, inner);
}

JinjaFlow JinjaEvaluator::run_statement(const JinjaFilterBlock& block, JinjaScope& scope) {
  const JinjaValue shown = filtered(block.body, block.filters, scope);
  print(jinja_text(budget_, shown));
  return JinjaFlow::normal;
}

JinjaFlow JinjaEvaluator::run_statement(const JinjaUnsupported& statement, JinjaScope&) {
  throw JinjaFailure(not_supported(statement.what));
}

JinjaValue JinjaEvaluator::filtered(const JinjaBody& body,
                                    const std::vector<JinjaExprPtr>& filters,
                                    JinjaScope& scope) {
  JinjaValue text = printed([&] {
    JinjaScope inner{.around = &scope};
    run_body(body, inner);
  });
  for (const JinjaExprPtr& filter : filters) {
    line_ = filter->line;
    text = apply(std::get<JinjaFilterExpr>(filter->node), text, scope);
  }
  return text;
}

void JinjaEvaluator::assign(const std::string& name, JinjaValue value, JinjaScope& scope) {
  for (auto& [known, held] : scope.variables) {
    if (known == name) {
      held = std::move(value);
      return;
    }
  }
  scope.variables.emplace_back(name, std::move(value));
}

void JinjaEvaluator::assign(const JinjaTarget& target, const JinjaValue& value, JinjaScope& scope) {
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

std::string run_jinja(const JinjaBody& body,
                      const std::string& file,
                      std::vector<JinjaNamed> variables,
                      const JinjaLimits& limits,
                      std::optional<std::time_t> now) {
  JinjaEvaluator evaluator(limits, now);
  try {
    return evaluator.run(body, std::move(variables));
  } catch (const JinjaFailure& failure) {
    std::string why = failure.what();
    std::replace(why.begin(), why.end(), '\n', ' ');
    fail<ConfigError>("{}: chat template, line {}: {}", file, evaluator.line(), why);
  }
}

}  // namespace ferry
