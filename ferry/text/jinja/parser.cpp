#include "ferry/text/jinja/parser.h"

#include <fmt/core.h>

#include <algorithm>
#include <set>

#include "ferry/text/jinja/evaluator.h"
#include "ferry/text/jinja/expression_parser.h"
#include "ferry/text/jinja/lexer.h"

namespace ferry {

namespace {

using Kind = JinjaToken::Kind;
using Ends = std::initializer_list<std::string_view>;

class Parser {
 public:
  Parser(std::string_view source, const std::string& file) : in_(lex_jinja(source, file), file) {}

  JinjaProgram run();

 private:
  JinjaBody body(const Ends& ends);
  void statement(JinjaBody& body);
  JinjaIf if_block();
  JinjaFor for_block(int line);
  void set(JinjaBody& body, int line);
  JinjaMacro macro();
  JinjaMacro::Parameter parameter();
  JinjaTarget target(bool may_be_attribute);
  void loop_control(std::string_view word, int line) const;
  void end_tag();
  void check_calls();
  bool other_tag(JinjaBody& body, const std::string& tag, int line);
  JinjaWith with_block();
  JinjaFilterBlock filter_block();
  JinjaBody inner_body(const Ends& ends);

  JinjaExpressionParser in_;
  std::set<std::string> macros_;
  int loops_ = 0;   // that the statement is in, of this macro
  int scopes_ = 0;  // blocks with variables of their own that the statement is in
};

JinjaProgram Parser::run() {
  JinjaBody all = body({});
  check_calls();
  return {.body = std::move(all), .unsupported = in_.unsupported()};
}

/// Statements up to a tag that is one of `ends`; that tag's name comes next.
JinjaBody Parser::body(const Ends& ends) {
  const JinjaExpressionParser::Level level(in_);
  JinjaBody body;
  for (;;) {
    const JinjaToken token = in_.next();
    switch (token.kind) {
      case Kind::data:
        body.push_back({token.line, JinjaData{token.value}});
        break;
      case Kind::variable_begin:
        body.push_back({token.line, JinjaOutput{in_.tuple()}});
        if (in_.peek().kind != Kind::variable_end) in_.refuse("expected }} behind the expression");
        in_.next();
        break;
      case Kind::block_begin:
        if (in_.peek().kind == Kind::name &&
            std::find(ends.begin(), ends.end(), in_.peek().value) != ends.end()) {
          return body;
        }
        statement(body);
        break;
      default:
        if (ends.size() == 0) return body;
        in_.refuse_at(token.line, fmt::format("the template ends without {}", *(ends.end() - 1)));
    }
  }
}

void Parser::end_tag() {
  if (in_.peek().kind != Kind::block_end) in_.refuse("expected %} at the end of the tag");
  in_.next();
}

void Parser::statement(JinjaBody& body) {
  const int line = in_.line();
  const std::string tag = in_.expect_name("the name of a tag");
  if (tag == "if") {
    body.push_back({line, if_block()});
  } else if (tag == "for") {
    body.push_back({line, for_block(line)});
  } else if (tag == "set") {
    set(body, line);
  } else if (tag == "macro") {
    JinjaMacro read = macro();
    // Around a macro is only what is global when it runs.
    if (scopes_ == 0) {
      body.push_back({line, std::move(read)});
    } else {
      const std::string what = fmt::format("macro {} inside of a loop, block or macro", read.name);
      in_.note_unsupported(line, what);
      body.push_back({line, JinjaUnsupported{what}});
    }
  } else if (tag == "generation") {
    body.push_back({line, JinjaGeneration{inner_body({"endgeneration"})}});
  } else if (tag == "break" || tag == "continue") {
    loop_control(tag, line);
    if (tag == "break")
      body.push_back({line, JinjaBreak{}});
    else
      body.push_back({line, JinjaContinue{}});
  } else if (!other_tag(body, tag, line)) {
    in_.refuse_at(line, fmt::format("tag {} is not supported", tag));
  }
  end_tag();
}

/// The tags that few templates have, up to what ends them.
bool Parser::other_tag(JinjaBody& body, const std::string& tag, int line) {
  if (tag == "do") {
    body.push_back({line, JinjaDo{in_.tuple()}});
  } else if (tag == "with") {
    body.push_back({line, with_block()});
  } else if (tag == "filter") {
    body.push_back({line, filter_block()});
  } else if (tag == "include" || tag == "import" || tag == "from" || tag == "extends" ||
             tag == "call" || tag == "block" || tag == "autoescape") {
    while (in_.peek().kind != Kind::block_end && in_.peek().kind != Kind::end) in_.next();
    if (tag == "call" || tag == "block" || tag == "autoescape") {
      const std::string end = "end" + tag;
      inner_body({end});
      if (in_.peek().kind == Kind::name) in_.next();  // {% endblock name %}
    }
    const std::string what = "tag " + tag;
    in_.note_unsupported(line, what);
    body.push_back({line, JinjaUnsupported{what}});
  } else {
    return false;
  }
  return true;
}

/// From the end of the tag that opens a block with variables of its own, which loops outside of it
/// do not reach into, to the name of the tag that ends it.
JinjaBody Parser::inner_body(const Ends& ends) {
  end_tag();
  const int loops = std::exchange(loops_, 0);
  ++scopes_;
  JinjaBody inner = body(ends);
  --scopes_;
  loops_ = loops;
  in_.next();
  return inner;
}

JinjaWith Parser::with_block() {
  JinjaWith block;
  while (in_.peek().kind != Kind::block_end) {
    if (!block.variables.empty()) in_.expect_op(",");
    std::string name = in_.expect_name("the name of a variable");
    in_.expect_op("=");
    block.variables.emplace_back(std::move(name), in_.expression());
  }
  end_tag();
  ++scopes_;
  block.body = body({"endwith"});
  --scopes_;
  in_.next();
  return block;
}

JinjaFilterBlock Parser::filter_block() {
  JinjaFilterBlock block{.filters = in_.filters(/*first_is_bare=*/true)};
  block.body = inner_body({"endfilter"});
  return block;
}

void Parser::loop_control(std::string_view word, int line) const {
  if (loops_ == 0) in_.refuse_at(line, fmt::format("{} stands outside of a loop", word));
}

JinjaIf Parser::if_block() {
  JinjaIf result;
  std::string tag = "if";
  while (tag != "endif") {
    JinjaIf::Branch branch;
    if (tag != "else") branch.condition = in_.tuple(false);
    end_tag();
    branch.body = tag == "else" ? body({"endif"}) : body({"elif", "else", "endif"});
    result.branches.push_back(std::move(branch));
    tag = in_.next().value;
  }
  return result;
}

JinjaFor Parser::for_block(int line) {
  JinjaFor loop;
  loop.target = target(false);
  if (!in_.skip_name("in")) in_.refuse("expected in, behind the variables of the loop");
  loop.items = in_.tuple(false);
  if (in_.skip_name("if")) loop.condition = in_.expression();
  // Its calls of loop() refuse; a loop that makes none is as any other.
  if (in_.skip_name("recursive")) in_.note_unsupported(line, "a recursive loop");
  end_tag();
  ++loops_;
  ++scopes_;
  loop.body = body({"else", "endfor"});
  --loops_;
  if (in_.next().value == "else") {
    end_tag();
    loop.otherwise = body({"endfor"});
    in_.next();
  }
  --scopes_;
  return loop;
}

JinjaTarget Parser::target(bool may_be_attribute) {
  JinjaTarget result;
  const bool brackets = in_.skip_op("(");
  do {
    if (!result.names.empty()) result.spread = true;
    if (result.spread && in_.peek().kind != Kind::name) break;  // a comma at the end
    result.names.push_back(in_.expect_name("the name of a variable"));
    static const std::set<std::string_view> constants = {
        "true", "false", "none", "True", "False", "None", "loop"};
    if (constants.contains(result.names.back())) {
      in_.refuse(fmt::format("{} cannot be assigned to", result.names.back()));
    }
    if (!may_be_attribute || !in_.is_op(".")) continue;
    if (result.spread) in_.refuse("attributes among several variables are not supported");
    in_.next();
    result.attribute = in_.expect_name("the name of an attribute");
  } while (result.attribute.empty() && in_.skip_op(","));
  if (brackets) in_.expect_op(")");
  return result;
}

void Parser::set(JinjaBody& body, int line) {
  JinjaTarget to = target(true);
  if (in_.skip_op("=")) {
    body.push_back({line, JinjaSet{std::move(to), in_.tuple()}});
    return;
  }
  JinjaSetBlock block{.target = std::move(to), .filters = in_.filters()};
  block.body = inner_body({"endset"});
  body.push_back({line, std::move(block)});
}

JinjaMacro::Parameter Parser::parameter() {
  JinjaMacro::Parameter parameter{.name = in_.expect_name("the name of a parameter")};
  if (in_.skip_op("=")) parameter.fallback = in_.expression();
  return parameter;
}

JinjaMacro Parser::macro() {
  JinjaMacro macro;
  macro.name = in_.expect_name("the name of the macro");
  macros_.insert(macro.name);
  in_.expect_op("(");
  while (!in_.is_op(")")) {
    macro.parameters.push_back(parameter());
    if (!in_.is_op(")")) in_.expect_op(",");
  }
  in_.next();
  macro.body = inner_body({"endmacro"});
  if (in_.peek().kind == Kind::name) in_.next();  // {% endmacro name %}
  return macro;
}

void Parser::check_calls() {
  for (const auto& [name, line] : in_.called()) {
    if (!macros_.contains(name) && !is_jinja_function(name)) {
      in_.note_unsupported(line, fmt::format("function {}()", name));
    }
  }
}

}  // namespace

JinjaProgram parse_jinja(std::string_view source, const std::string& file) {
  return Parser(source, file).run();
}

}  // namespace ferry
