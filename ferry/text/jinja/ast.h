// A parsed chat template.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "ferry/text/jinja/builtins.h"
#include "ferry/text/jinja/value.h"

namespace ferry {

struct JinjaExpr;
using JinjaExprPtr = std::unique_ptr<JinjaExpr>;

struct JinjaArguments {
  std::vector<JinjaExprPtr> positional;
  std::vector<std::pair<std::string, JinjaExprPtr>> named;
};

struct JinjaLiteral {
  JinjaValue value;
};

struct JinjaName {
  std::string name;
};

struct JinjaListExpr {
  std::vector<JinjaExprPtr> items;
  JinjaList::Kind kind;
};

struct JinjaDictExpr {
  std::vector<std::pair<JinjaExprPtr, JinjaExprPtr>> entries;
};

struct JinjaAttribute {
  JinjaExprPtr of;
  std::string name;
};

struct JinjaItem {
  JinjaExprPtr of, index;
};

struct JinjaSlice {
  JinjaExprPtr of, begin, end, step;  // the last three may be null
};

struct JinjaFunctionCall {
  std::string name;
  JinjaArguments arguments;
};

struct JinjaMethodCall {
  JinjaExprPtr of;
  std::string name;
  JinjaArguments arguments;
};

struct JinjaFilterExpr {
  JinjaExprPtr of;  // null: the text of a set block
  std::string name;
  JinjaFilter filter;  // null: there is none of this name, which it refuses when it is reached
  JinjaArguments arguments;
};

struct JinjaTestExpr {
  JinjaExprPtr of;
  std::string name;
  JinjaTest test;  // null: as of a filter
  JinjaArguments arguments;
};

struct JinjaUnary {
  enum class Op { logical_not, minus, plus };
  Op op;
  JinjaExprPtr of;
};

struct JinjaArithmetic {
  char op;  // + - * / %, d for // and p for **
  JinjaExprPtr left, right;
};

struct JinjaComparison {
  enum class Op { eq, ne, lt, le, gt, ge, in, not_in };
  JinjaExprPtr first;
  std::vector<std::pair<Op, JinjaExprPtr>> rest;
};

struct JinjaLogic {
  bool is_or;
  JinjaExprPtr left, right;
};

struct JinjaConcat {
  std::vector<JinjaExprPtr> parts;
};

struct JinjaConditional {
  JinjaExprPtr condition, yes, no;  // no may be null
};

/// What the parser does not know: an expression or a statement that refuses when it is reached, so
/// that a template may hold it where a plain chat never comes.
struct JinjaUnsupported {
  std::string what;  // "filter x", "tag y"
};

struct JinjaExpr {
  using Node = std::variant<JinjaLiteral,
                            JinjaName,
                            JinjaListExpr,
                            JinjaDictExpr,
                            JinjaAttribute,
                            JinjaItem,
                            JinjaSlice,
                            JinjaFunctionCall,
                            JinjaMethodCall,
                            JinjaFilterExpr,
                            JinjaTestExpr,
                            JinjaUnary,
                            JinjaArithmetic,
                            JinjaComparison,
                            JinjaLogic,
                            JinjaConcat,
                            JinjaConditional,
                            JinjaUnsupported>;
  int line;
  int depth;  // of the tree below, 1 for a leaf; bounded by the parser
  Node node;
};

struct JinjaStatement;
using JinjaBody = std::vector<JinjaStatement>;

/// What is assigned to: a name, names that a sequence is spread over, or namespace.attribute.
struct JinjaTarget {
  std::vector<std::string> names;
  bool spread = false;
  std::string attribute;  // not empty: of the namespace names[0]
};

struct JinjaData {
  std::string text;
};

struct JinjaOutput {
  JinjaExprPtr value;
};

struct JinjaIf {
  struct Branch {
    JinjaExprPtr condition;  // null: else
    JinjaBody body;
  };

  std::vector<Branch> branches;
};

struct JinjaFor {
  JinjaTarget target;
  JinjaExprPtr items, condition;  // condition may be null
  JinjaBody body, otherwise;
};

struct JinjaSet {
  JinjaTarget target;
  JinjaExprPtr value;
};

struct JinjaSetBlock {
  JinjaTarget target;
  std::vector<JinjaExprPtr> filters;  // JinjaFilterExpr without `of`
  JinjaBody body;
};

struct JinjaMacro {
  struct Parameter {
    std::string name;
    JinjaExprPtr fallback;  // null: undefined
  };

  std::string name;
  std::vector<Parameter> parameters;
  JinjaBody body;
};

/// {% generation %}: marks for training, prints its body.
struct JinjaGeneration {
  JinjaBody body;
};

/// {% do value %}: for what the value changes; prints nothing.
struct JinjaDo {
  JinjaExprPtr value;
};

/// {% with name = value, ... %}: variables of its body alone.
struct JinjaWith {
  std::vector<std::pair<std::string, JinjaExprPtr>> variables;
  JinjaBody body;
};

/// {% filter a | b %}: prints what the filters make of its body.
struct JinjaFilterBlock {
  std::vector<JinjaExprPtr> filters;  // JinjaFilterExpr without `of`
  JinjaBody body;
};

struct JinjaBreak {};

struct JinjaContinue {};

struct JinjaStatement {
  using Node = std::variant<JinjaData,
                            JinjaOutput,
                            JinjaIf,
                            JinjaFor,
                            JinjaSet,
                            JinjaSetBlock,
                            JinjaMacro,
                            JinjaGeneration,
                            JinjaDo,
                            JinjaWith,
                            JinjaFilterBlock,
                            JinjaBreak,
                            JinjaContinue,
                            JinjaUnsupported>;
  int line;
  Node node;
};

}  // namespace ferry
