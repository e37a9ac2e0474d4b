// The part of the template parser that reads expressions. For the parser's .cpp files only.
#pragma once

#include <set>
#include <string>
#include <utility>
#include <vector>

#include "ferry/text/jinja/ast.h"
#include "ferry/text/jinja/lexer.h"

namespace ferry {

/// Reads tokens from front to back. Every error is a ModelError with file and line.
class JinjaExpressionParser {
 public:
  JinjaExpressionParser(std::vector<JinjaToken> tokens, const std::string& file)
      : tokens_(std::move(tokens)), file_(file) {}

  // Tokens.
  const JinjaToken& peek(std::size_t ahead = 0) const;
  JinjaToken next();
  bool is_op(std::string_view op, std::size_t ahead = 0) const;
  bool is_name(std::string_view name, std::size_t ahead = 0) const;
  bool skip_op(std::string_view op);
  bool skip_name(std::string_view name);
  void expect_op(std::string_view op);
  std::string expect_name(const char* what);

  int line() const { return peek().line; }

  // Expressions. Without conditions `a if b else c` ends before the if.
  JinjaExprPtr expression(bool with_conditions = true);
  /// One expression, or a tuple of several with commas between.
  JinjaExprPtr tuple(bool with_conditions = true);
  /// `| name(args) | ...` behind nothing: the filters of a set block, or of a filter block, whose
  /// first has no | before it.
  std::vector<JinjaExprPtr> filters(bool first_is_bare = false);

  /// Calls of functions by name, in order: the statements know which macros there are.
  struct Called {
    std::string name;
    int line;
  };

  const std::vector<Called>& called() const { return called_; }

  /// Notes that the template asks for something that is not there; its node refuses when reached.
  void note_unsupported(int line, const std::string& what);
  /// What was noted, in the order of the lines.
  std::vector<std::string> unsupported() const;

  [[noreturn]] void refuse(const std::string& why) const;
  [[noreturn]] void refuse_at(int line, const std::string& why) const;

  /// Nesting of blocks and brackets; throws beyond what recursion bears. Statements share it.
  class Level;

 private:
  JinjaExprPtr conditional();
  JinjaExprPtr disjunction();
  JinjaExprPtr conjunction();
  JinjaExprPtr negation();
  JinjaExprPtr comparison();
  JinjaExprPtr sum();
  JinjaExprPtr concatenation();
  JinjaExprPtr product();
  JinjaExprPtr power();
  JinjaExprPtr unary(bool with_filters);
  JinjaExprPtr primary();
  JinjaExprPtr parenthesised();
  JinjaExprPtr list();
  JinjaExprPtr dict();
  JinjaExprPtr postfix(JinjaExprPtr of);
  JinjaExprPtr filters_and_tests(JinjaExprPtr of);
  JinjaExprPtr attribute(JinjaExprPtr of);
  JinjaExprPtr subscript(JinjaExprPtr of);
  JinjaExprPtr call(JinjaExprPtr of);
  /// At the name.
  JinjaExprPtr filter(JinjaExprPtr of);
  JinjaExprPtr test(JinjaExprPtr of);
  JinjaArguments arguments();
  bool begins_test_argument() const;
  void check_inner_name(const std::string& filter, const JinjaArguments& args, int line);
  JinjaExprPtr refusing(int line, std::string what);
  static int depth_of(const JinjaExprPtr& expr);
  static int depth_of(const JinjaArguments& args);
  JinjaExprPtr make(int line, JinjaExpr::Node node, int depth_below);

  std::vector<JinjaToken> tokens_;
  const std::string& file_;
  std::size_t at_ = 0;
  int level_ = 0;
  std::vector<Called> called_;
  std::set<std::pair<int, std::string>> unsupported_;  // line, what
};

class JinjaExpressionParser::Level {
 public:
  explicit Level(JinjaExpressionParser& parser);

  ~Level() { --parser_.level_; }

  Level(const Level&) = delete;
  Level& operator=(const Level&) = delete;

 private:
  JinjaExpressionParser& parser_;
};

}  // namespace ferry
