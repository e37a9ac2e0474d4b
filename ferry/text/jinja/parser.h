// A chat template's source -> statements. What is not supported becomes a node that refuses when it
// is reached, and is told by its name, with the line.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "ferry/text/jinja/ast.h"

namespace ferry {

struct JinjaProgram {
  JinjaBody body;
  /// What the template asks for and is not there (tags, filters, tests, functions, methods), a line
  /// of text each, with file and line.
  std::vector<std::string> unsupported;
};

/// Throws ModelError with `file` and line for what is no template, or nests beyond what the
/// program's recursion bears.
JinjaProgram parse_jinja(std::string_view source, const std::string& file);

}  // namespace ferry
