// A run of a chat template: its statements (evaluator.cpp), its expressions (expressions.cpp) and
// methods that change values (changes.cpp). For those alone; callers have evaluator.h.
#pragma once

#include <ctime>
#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "ferry/text/jinja/ast.h"
#include "ferry/text/jinja/budget.h"
#include "ferry/text/jinja/builtins.h"
#include "ferry/text/jinja/evaluator.h"
#include "ferry/text/jinja/functions.h"

namespace ferry {

enum class JinjaFlow { normal, leave_loop, next_item };

/// Variables of one block; what is not here is looked for around it.
struct JinjaScope {
  JinjaScope* around = nullptr;
  std::vector<JinjaNamed> variables;
};

/// Whether value.name() is a method that changes it (changes.cpp).
bool is_jinja_change(const JinjaValue& value, std::string_view name);

/// Threads: one.
class JinjaEvaluator {
 public:
  JinjaEvaluator(const JinjaLimits& limits, std::optional<std::time_t> now)
      : budget_(limits.steps, limits.max_text), functions_(budget_, now) {}

  std::string run(const JinjaBody& body, std::vector<JinjaNamed> variables);

  int line() const { return line_; }

 private:
  class Depth;

  JinjaFlow run_body(const JinjaBody& body, JinjaScope& scope);

  JinjaFlow run_statement(const JinjaData& data, JinjaScope& scope);
  JinjaFlow run_statement(const JinjaOutput& output, JinjaScope& scope);
  JinjaFlow run_statement(const JinjaIf& block, JinjaScope& scope);
  JinjaFlow run_statement(const JinjaFor& loop, JinjaScope& scope);
  JinjaFlow run_statement(const JinjaSet& set, JinjaScope& scope);
  JinjaFlow run_statement(const JinjaSetBlock& set, JinjaScope& scope);
  JinjaFlow run_statement(const JinjaMacro& macro, JinjaScope& scope);
  JinjaFlow run_statement(const JinjaGeneration& block, JinjaScope& scope);

  JinjaFlow run_statement(const JinjaDo& statement, JinjaScope& scope);
  JinjaFlow run_statement(const JinjaWith& block, JinjaScope& scope);
  JinjaFlow run_statement(const JinjaFilterBlock& block, JinjaScope& scope);
  static JinjaFlow run_statement(const JinjaUnsupported& statement, JinjaScope& scope);

  static JinjaFlow run_statement(const JinjaBreak&, JinjaScope&) { return JinjaFlow::leave_loop; }

  static JinjaFlow run_statement(const JinjaContinue&, JinjaScope&) { return JinjaFlow::next_item; }

  JinjaValue value(const JinjaExpr& expr, JinjaScope& scope);
  JinjaValue value_or_none(const JinjaExprPtr& expr, JinjaScope& scope);

  static JinjaValue evaluate(const JinjaLiteral& literal, JinjaScope&) { return literal.value; }

  JinjaValue evaluate(const JinjaName& name, JinjaScope& scope);
  JinjaValue evaluate(const JinjaListExpr& list, JinjaScope& scope);
  JinjaValue evaluate(const JinjaDictExpr& dict, JinjaScope& scope);
  JinjaValue evaluate(const JinjaAttribute& attribute, JinjaScope& scope);
  JinjaValue evaluate(const JinjaItem& item, JinjaScope& scope);
  JinjaValue evaluate(const JinjaSlice& slice, JinjaScope& scope);
  JinjaValue evaluate(const JinjaFunctionCall& call, JinjaScope& scope);
  JinjaValue evaluate(const JinjaMethodCall& call, JinjaScope& scope);
  JinjaValue evaluate(const JinjaFilterExpr& filter, JinjaScope& scope);
  JinjaValue evaluate(const JinjaTestExpr& test, JinjaScope& scope);
  JinjaValue evaluate(const JinjaUnary& unary, JinjaScope& scope);
  JinjaValue evaluate(const JinjaArithmetic& arithmetic, JinjaScope& scope);
  JinjaValue evaluate(const JinjaComparison& comparison, JinjaScope& scope);
  JinjaValue evaluate(const JinjaLogic& logic, JinjaScope& scope);
  JinjaValue evaluate(const JinjaConcat& concat, JinjaScope& scope);
  JinjaValue evaluate(const JinjaConditional& conditional, JinjaScope& scope);

  static JinjaValue evaluate(const JinjaUnsupported& unsupported, JinjaScope& scope);

  bool compare(JinjaComparison::Op op, const JinjaValue& left, const JinjaValue& right);
  JinjaArgs arguments(const std::string& callee, const JinjaArguments& args, JinjaScope& scope);
  JinjaValue change(const JinjaMethodCall& call,
                    const JinjaValue& of,
                    JinjaArgs& args,
                    JinjaScope& scope);
  void store(const JinjaExpr& expr, JinjaValue changed, JinjaScope& scope);
  JinjaValue call_macro(const JinjaMacro& macro, JinjaArgs args);
  JinjaValue apply(const JinjaFilterExpr& filter, const JinjaValue& to, JinjaScope& scope);
  const JinjaValue* find(std::string_view name, const JinjaScope& scope);
  void assign(const JinjaTarget& target, const JinjaValue& value, JinjaScope& scope);
  static void assign(const std::string& name, JinjaValue value, JinjaScope& scope);
  void print(std::string_view text);

  /// What the filters make of what the body prints.
  JinjaValue filtered(const JinjaBody& body,
                      const std::vector<JinjaExprPtr>& filters,
                      JinjaScope& scope);

  /// What fn prints, as a text instead.
  template <class Fn>
  JinjaValue printed(const Fn& fn) {
    std::string outer = std::exchange(out_, {});
    fn();
    return JinjaValue::text(std::exchange(out_, std::move(outer)));
  }

  JinjaBudget budget_;
  JinjaFunctions functions_;
  std::deque<JinjaMacroObject> macros_;
  std::deque<JinjaLoop> loops_;
  JinjaScope global_;
  std::string out_;
  int line_ = 1;
  int depth_ = 0;
};

/// Macros call macros: counts how deep the program's own recursion is.
class JinjaEvaluator::Depth {
 public:
  explicit Depth(JinjaEvaluator& evaluator) : evaluator_(evaluator) {
    constexpr int kMaxDepth = 800;
    if (evaluator_.depth_ >= kMaxDepth) throw JinjaFailure("macros call one another too deeply");
    ++evaluator_.depth_;
  }

  ~Depth() { --evaluator_.depth_; }

  Depth(const Depth&) = delete;
  Depth& operator=(const Depth&) = delete;

 private:
  JinjaEvaluator& evaluator_;
};

}  // namespace ferry
