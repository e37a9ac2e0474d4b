#include "ferry/text/jinja/expression_parser.h"

#include <fmt/core.h>

#include <algorithm>

namespace ferry {

namespace {

using Kind = JinjaToken::Kind;

// Far above any template, low enough for the stack of a thread.
constexpr int kMaxLevels = 100;
constexpr int kMaxDepth = 200;

std::string describe(const JinjaToken& token) {
  switch (token.kind) {
    case Kind::data:
      return "text";
    case Kind::variable_begin:
      return "{{";
    case Kind::variable_end:
      return "}}";
    case Kind::block_begin:
      return "{%";
    case Kind::block_end:
      return "%}";
    case Kind::text:
      return "a string";
    case Kind::integer:
    case Kind::real:
      return "a number";
    case Kind::end:
      return "the end of the template";
    default:
      return token.value;
  }
}

}  // namespace

JinjaExpressionParser::Level::Level(JinjaExpressionParser& parser) : parser_(parser) {
  if (parser_.level_ >= kMaxLevels) {
    parser_.refuse(fmt::format("nests deeper than {} levels", kMaxLevels));
  }
  ++parser_.level_;
}

const JinjaToken& JinjaExpressionParser::peek(std::size_t ahead) const {
  return tokens_[std::min(at_ + ahead, tokens_.size() - 1)];
}

JinjaToken JinjaExpressionParser::next() {
  JinjaToken token = peek();
  if (at_ + 1 < tokens_.size()) ++at_;
  return token;
}

bool JinjaExpressionParser::is_op(std::string_view op, std::size_t ahead) const {
  return peek(ahead).kind == Kind::op && peek(ahead).value == op;
}

bool JinjaExpressionParser::is_name(std::string_view name, std::size_t ahead) const {
  return peek(ahead).kind == Kind::name && peek(ahead).value == name;
}

bool JinjaExpressionParser::skip_op(std::string_view op) {
  if (!is_op(op)) return false;
  next();
  return true;
}

bool JinjaExpressionParser::skip_name(std::string_view name) {
  if (!is_name(name)) return false;
  next();
  return true;
}

void JinjaExpressionParser::expect_op(std::string_view op) {
  if (!skip_op(op)) refuse(fmt::format("expected {}, found {}", op, describe(peek())));
}

std::string JinjaExpressionParser::expect_name(const char* what) {
  if (peek().kind != Kind::name) {
    refuse(fmt::format("expected {}, found {}", what, describe(peek())));
  }
  return next().value;
}

void JinjaExpressionParser::refuse(const std::string& why) const { refuse_at(line(), why); }

void JinjaExpressionParser::refuse_at(int line, const std::string& why) const {
  refuse_template(file_, line, why);
}

void JinjaExpressionParser::note_unsupported(int line, const std::string& what) {
  unsupported_.emplace(line, what);
}

std::vector<std::string> JinjaExpressionParser::unsupported() const {
  std::vector<std::string> lines;
  for (const auto& [line, what] : unsupported_) {
    lines.push_back(template_error(file_, line, not_supported(what)));
  }
  return lines;
}

JinjaExprPtr JinjaExpressionParser::refusing(int line, std::string what) {
  note_unsupported(line, what);
  return make(line, JinjaUnsupported{std::move(what)}, 0);
}

int JinjaExpressionParser::depth_of(const JinjaExprPtr& expr) {
  return expr == nullptr ? 0 : expr->depth;
}

int JinjaExpressionParser::depth_of(const JinjaArguments& args) {
  int depth = 0;
  for (const auto& arg : args.positional) depth = std::max(depth, depth_of(arg));
  for (const auto& [name, arg] : args.named) depth = std::max(depth, depth_of(arg));
  return depth;
}

JinjaExprPtr JinjaExpressionParser::make(int line, JinjaExpr::Node node, int depth_below) {
  // Operators in a row nest without brackets; evaluating and freeing them recurses.
  if (depth_below >= kMaxDepth) {
    refuse_at(line, fmt::format("an expression of over {} operations in a row", kMaxDepth));
  }
  return std::make_unique<JinjaExpr>(JinjaExpr{line, depth_below + 1, std::move(node)});
}

JinjaExprPtr JinjaExpressionParser::expression(bool with_conditions) {
  const Level level(*this);
  return with_conditions ? conditional() : disjunction();
}

JinjaExprPtr JinjaExpressionParser::tuple(bool with_conditions) {
  const int first_line = line();
  JinjaExprPtr first = expression(with_conditions);
  if (!is_op(",")) return first;
  JinjaListExpr items{.kind = JinjaList::Kind::tuple};
  int depth = depth_of(first);
  items.items.push_back(std::move(first));
  while (skip_op(",")) {
    const Kind kind = peek().kind;
    if (kind == Kind::variable_end || kind == Kind::block_end || is_op(")")) break;
    items.items.push_back(expression(with_conditions));
    depth = std::max(depth, depth_of(items.items.back()));
  }
  return make(first_line, std::move(items), depth);
}

JinjaExprPtr JinjaExpressionParser::conditional() {
  JinjaExprPtr value = disjunction();
  while (is_name("if")) {
    const int at = next().line;
    JinjaExprPtr condition = disjunction();
    JinjaExprPtr otherwise;
    if (skip_name("else")) {
      const Level level(*this);
      otherwise = conditional();
    }
    const int depth = std::max({depth_of(value), depth_of(condition), depth_of(otherwise)});
    value = make(
        at, JinjaConditional{std::move(condition), std::move(value), std::move(otherwise)}, depth);
  }
  return value;
}

JinjaExprPtr JinjaExpressionParser::disjunction() {
  JinjaExprPtr left = conjunction();
  while (is_name("or")) {
    const int at = next().line;
    JinjaExprPtr right = conjunction();
    const int depth = std::max(depth_of(left), depth_of(right));
    left = make(at, JinjaLogic{true, std::move(left), std::move(right)}, depth);
  }
  return left;
}

JinjaExprPtr JinjaExpressionParser::conjunction() {
  JinjaExprPtr left = negation();
  while (is_name("and")) {
    const int at = next().line;
    JinjaExprPtr right = negation();
    const int depth = std::max(depth_of(left), depth_of(right));
    left = make(at, JinjaLogic{false, std::move(left), std::move(right)}, depth);
  }
  return left;
}

JinjaExprPtr JinjaExpressionParser::negation() {
  if (!is_name("not")) return comparison();
  const Level level(*this);
  const int at = next().line;
  JinjaExprPtr of = negation();
  const int depth = depth_of(of);
  return make(at, JinjaUnary{JinjaUnary::Op::logical_not, std::move(of)}, depth);
}

JinjaExprPtr JinjaExpressionParser::comparison() {
  using Op = JinjaComparison::Op;
  static const std::vector<std::pair<std::string_view, Op>> operators = {
      {"==", Op::eq}, {"!=", Op::ne}, {"<", Op::lt}, {"<=", Op::le}, {">", Op::gt}, {">=", Op::ge}};
  const int at = line();
  JinjaComparison chain{.first = sum()};
  int depth = depth_of(chain.first);
  for (;;) {
    const auto symbol = std::find_if(
        operators.begin(), operators.end(), [&](const auto& entry) { return is_op(entry.first); });
    Op op = Op::in;
    if (symbol != operators.end()) {
      op = symbol->second;
    } else if (is_name("not") && is_name("in", 1)) {
      next();
      op = Op::not_in;
    } else if (!is_name("in")) {
      break;
    }
    next();
    chain.rest.emplace_back(op, sum());
    depth = std::max(depth, depth_of(chain.rest.back().second));
  }
  return chain.rest.empty() ? std::move(chain.first) : make(at, std::move(chain), depth);
}

JinjaExprPtr JinjaExpressionParser::sum() {
  JinjaExprPtr left = concatenation();
  while (is_op("+") || is_op("-")) {
    const JinjaToken op = next();
    JinjaExprPtr right = concatenation();
    const int depth = std::max(depth_of(left), depth_of(right));
    left = make(op.line, JinjaArithmetic{op.value[0], std::move(left), std::move(right)}, depth);
  }
  return left;
}

JinjaExprPtr JinjaExpressionParser::concatenation() {
  const int at = line();
  JinjaConcat concat;
  concat.parts.push_back(product());
  int depth = depth_of(concat.parts[0]);
  while (skip_op("~")) {
    concat.parts.push_back(product());
    depth = std::max(depth, depth_of(concat.parts.back()));
  }
  return concat.parts.size() == 1 ? std::move(concat.parts[0]) : make(at, std::move(concat), depth);
}

JinjaExprPtr JinjaExpressionParser::product() {
  JinjaExprPtr left = power();
  for (;;) {
    if (!is_op("*") && !is_op("/") && !is_op("//") && !is_op("%")) return left;
    const JinjaToken op = next();
    JinjaExprPtr right = power();
    const int depth = std::max(depth_of(left), depth_of(right));
    const char code = op.value == "//" ? 'd' : op.value[0];
    left = make(op.line, JinjaArithmetic{code, std::move(left), std::move(right)}, depth);
  }
}

JinjaExprPtr JinjaExpressionParser::power() {
  JinjaExprPtr left = unary(true);
  while (is_op("**")) {
    const int at = next().line;
    JinjaExprPtr right = unary(true);
    const int depth = std::max(depth_of(left), depth_of(right));
    left = make(at, JinjaArithmetic{'p', std::move(left), std::move(right)}, depth);
  }
  return left;
}

JinjaExprPtr JinjaExpressionParser::unary(bool with_filters) {
  JinjaExprPtr value;
  if (is_op("-") || is_op("+")) {
    const Level level(*this);
    const JinjaToken sign = next();
    JinjaExprPtr of = unary(false);
    const int depth = depth_of(of);
    const auto op = sign.value == "-" ? JinjaUnary::Op::minus : JinjaUnary::Op::plus;
    value = make(sign.line, JinjaUnary{op, std::move(of)}, depth);
  } else {
    value = primary();
  }
  value = postfix(std::move(value));
  return with_filters ? filters_and_tests(std::move(value)) : std::move(value);
}

JinjaExprPtr JinjaExpressionParser::primary() {
  if (is_op("(")) return parenthesised();
  if (is_op("[")) return list();
  if (is_op("{")) return dict();
  const JinjaToken token = next();
  JinjaValue value;
  switch (token.kind) {
    case Kind::name:
      if (token.value == "true" || token.value == "True") {
        value = JinjaValue(true);
      } else if (token.value == "false" || token.value == "False") {
        value = JinjaValue(false);
      } else if (token.value != "none" && token.value != "None") {
        return make(token.line, JinjaName{token.value}, 0);
      }
      break;
    case Kind::text: {
      std::string text = token.value;
      while (peek().kind == Kind::text) text += next().value;
      value = JinjaValue::text(std::move(text));
      break;
    }
    case Kind::integer:
      value = JinjaValue(token.integer);
      break;
    case Kind::real:
      value = JinjaValue(token.real);
      break;
    default:
      refuse_at(token.line, fmt::format("expected an expression, found {}", describe(token)));
  }
  return make(token.line, JinjaLiteral{std::move(value)}, 0);
}

JinjaExprPtr JinjaExpressionParser::parenthesised() {
  const int at = next().line;
  if (skip_op(")")) return make(at, JinjaListExpr{.kind = JinjaList::Kind::tuple}, 0);
  JinjaExprPtr value = tuple();
  expect_op(")");
  return value;
}

JinjaExprPtr JinjaExpressionParser::list() {
  const int at = next().line;
  JinjaListExpr list{.kind = JinjaList::Kind::list};
  int depth = 0;
  while (!is_op("]")) {
    list.items.push_back(expression());
    depth = std::max(depth, depth_of(list.items.back()));
    if (!is_op("]")) expect_op(",");
  }
  next();
  return make(at, std::move(list), depth);
}

JinjaExprPtr JinjaExpressionParser::dict() {
  const int at = next().line;
  JinjaDictExpr dict;
  int depth = 0;
  while (!is_op("}")) {
    JinjaExprPtr key = expression();
    expect_op(":");
    JinjaExprPtr value = expression();
    depth = std::max({depth, depth_of(key), depth_of(value)});
    dict.entries.emplace_back(std::move(key), std::move(value));
    if (!is_op("}")) expect_op(",");
  }
  next();
  return make(at, std::move(dict), depth);
}

}  // namespace ferry
