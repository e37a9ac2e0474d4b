// The rest of JinjaExpressionParser: what may stand behind a value. Here names of methods, filters
// and tests are looked up; one that is not there is noted.
#include <fmt/core.h>

#include <algorithm>
#include <array>

#include "ferry/text/jinja/builtins.h"
#include "ferry/text/jinja/expression_parser.h"

namespace ferry {

namespace {

using Kind = JinjaToken::Kind;

}  // namespace

JinjaExprPtr JinjaExpressionParser::postfix(JinjaExprPtr of) {
  for (;;) {
    if (is_op(".")) {
      of = attribute(std::move(of));
    } else if (is_op("[")) {
      of = subscript(std::move(of));
    } else if (is_op("(")) {
      of = call(std::move(of));
    } else {
      return of;
    }
  }
}

JinjaExprPtr JinjaExpressionParser::attribute(JinjaExprPtr of) {
  const int at = next().line;
  const int depth = depth_of(of);
  if (peek().kind == Kind::integer) {
    JinjaExprPtr index = make(at, JinjaLiteral{JinjaValue(next().integer)}, 0);
    return make(at, JinjaItem{std::move(of), std::move(index)}, std::max(depth, 1));
  }
  return make(at, JinjaAttribute{std::move(of), expect_name("a name behind the dot")}, depth);
}

JinjaExprPtr JinjaExpressionParser::subscript(JinjaExprPtr of) {
  const int at = next().line;
  JinjaExprPtr parts[3];
  bool slice = false;
  if (!is_op(":")) parts[0] = expression();
  for (int i = 1; i < 3 && skip_op(":"); ++i) {
    slice = true;
    if (!is_op(":") && !is_op("]")) parts[i] = expression();
  }
  if (is_op(",")) refuse("several indices in one pair of brackets are not supported");
  expect_op("]");
  const int depth =
      std::max({depth_of(of), depth_of(parts[0]), depth_of(parts[1]), depth_of(parts[2])});
  if (!slice) return make(at, JinjaItem{std::move(of), std::move(parts[0])}, depth);
  return make(
      at,
      JinjaSlice{std::move(of), std::move(parts[0]), std::move(parts[1]), std::move(parts[2])},
      depth);
}

JinjaExprPtr JinjaExpressionParser::call(JinjaExprPtr of) {
  const int at = line();
  JinjaArguments args = arguments();
  const int depth = std::max(depth_of(of), depth_of(args));
  if (const auto* name = std::get_if<JinjaName>(&of->node)) {
    called_.push_back({name->name, at});
    return make(at, JinjaFunctionCall{name->name, std::move(args)}, depth);
  }
  if (auto* method = std::get_if<JinjaAttribute>(&of->node)) {
    if (!is_jinja_method(method->name)) {
      note_unsupported(at, fmt::format("method .{}()", method->name));
    }
    return make(at, JinjaMethodCall{std::move(method->of), method->name, std::move(args)}, depth);
  }
  return refusing(at, "a call of anything but a name or a method");
}

JinjaExprPtr JinjaExpressionParser::filters_and_tests(JinjaExprPtr of) {
  for (;;) {
    if (skip_op("|")) {
      of = filter(std::move(of));
    } else if (is_name("is")) {
      of = test(std::move(of));
    } else {
      return of;
    }
  }
}

std::vector<JinjaExprPtr> JinjaExpressionParser::filters(bool first_is_bare) {
  std::vector<JinjaExprPtr> chain;
  if (first_is_bare) chain.push_back(filter(nullptr));
  while (skip_op("|")) chain.push_back(filter(nullptr));
  return chain;
}

JinjaExprPtr JinjaExpressionParser::filter(JinjaExprPtr of) {
  const int at = line();
  std::string name = expect_name("the name of a filter");
  const JinjaFilter found = find_jinja_filter(name);
  if (found == nullptr) note_unsupported(at, fmt::format("filter {}", name));
  JinjaArguments args;
  if (is_op("(")) args = arguments();
  check_inner_name(name, args, at);
  const int depth = std::max(depth_of(of), depth_of(args));
  return make(at, JinjaFilterExpr{std::move(of), std::move(name), found, std::move(args)}, depth);
}

/// map, select and their like name another filter or test as an argument.
void JinjaExpressionParser::check_inner_name(const std::string& filter,
                                             const JinjaArguments& args,
                                             int line) {
  const bool by_attribute = filter == "selectattr" || filter == "rejectattr";
  const bool by_test = by_attribute || filter == "select" || filter == "reject";
  const std::size_t place = by_attribute ? 1 : 0;
  if ((!by_test && filter != "map") || args.positional.size() <= place) return;
  const auto* literal = std::get_if<JinjaLiteral>(&args.positional[place]->node);
  if (literal == nullptr || literal->value.text() == nullptr) return;
  const std::string& name = *literal->value.text();
  const bool known =
      by_test ? find_jinja_test(name) != nullptr : find_jinja_filter(name) != nullptr;
  if (!known) note_unsupported(line, fmt::format("{} {}", by_test ? "test" : "filter", name));
}

/// An argument without brackets: `is divisibleby 3`.
bool JinjaExpressionParser::begins_test_argument() const {
  switch (peek().kind) {
    case Kind::name:
      return !is_name("else") && !is_name("or") && !is_name("and") && !is_name("if") &&
             !is_name("not") && !is_name("in");
    case Kind::text:
    case Kind::integer:
    case Kind::real:
      return true;
    default:
      return is_op("[") || is_op("{");
  }
}

JinjaExprPtr JinjaExpressionParser::test(JinjaExprPtr of) {
  next();
  const bool negated = skip_name("not");
  const int at = line();
  std::string name = expect_name("the name of a test");
  const JinjaTest found = find_jinja_test(name);
  if (found == nullptr) note_unsupported(at, fmt::format("test {}", name));
  JinjaArguments args;
  if (is_op("(")) {
    args = arguments();
  } else if (is_name("is")) {
    refuse("tests cannot stand in a row");
  } else if (begins_test_argument()) {
    const Level level(*this);
    args.positional.push_back(postfix(primary()));
  }
  const int depth = std::max(depth_of(of), depth_of(args));
  JinjaExprPtr result =
      make(at, JinjaTestExpr{std::move(of), std::move(name), found, std::move(args)}, depth);
  if (!negated) return result;
  return make(at, JinjaUnary{JinjaUnary::Op::logical_not, std::move(result)}, depth + 1);
}

JinjaArguments JinjaExpressionParser::arguments() {
  const Level level(*this);
  expect_op("(");
  JinjaArguments args;
  while (!is_op(")")) {
    if (is_op("*") || is_op("**")) {
      const JinjaToken star = next();
      expression();
      args.positional.push_back(
          refusing(star.line, fmt::format("an argument behind {}", star.value)));
    } else if (peek().kind == Kind::name && is_op("=", 1)) {
      std::string name = next().value;
      next();
      args.named.emplace_back(std::move(name), expression());
    } else {
      if (!args.named.empty()) refuse("an argument without name stands behind one with a name");
      args.positional.push_back(expression());
    }
    if (!is_op(")")) expect_op(",");
  }
  next();
  return args;
}

}  // namespace ferry
