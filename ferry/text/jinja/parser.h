// A chat template's source -> statements. Refuses what is not supported by its name, with the line,
// so that a template that loads runs.
#pragma once

#include <string>
#include <string_view>

#include "ferry/text/jinja/ast.h"

namespace ferry {

/// Throws ModelError with `file` and line for what is no template or asks for something that is not
/// there: tags, filters, tests, functions, methods, nesting beyond what the program's recursion
/// bears.
JinjaBody parse_jinja(std::string_view source, const std::string& file);

}  // namespace ferry
