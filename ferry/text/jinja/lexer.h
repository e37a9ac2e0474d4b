// A chat template's source -> tokens, with white space around tags treated as transformers sets
// Jinja up: trim_blocks and lstrip_blocks on, one newline at the end dropped.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace ferry {

struct JinjaToken {
  enum class Kind {
    data,            // text between tags, as it is printed
    variable_begin,  // {{
    variable_end,
    block_begin,  // {%
    block_end,
    name,
    text,  // a string, escapes resolved
    integer,
    real,
    op,
    end,
  };

  Kind kind = Kind::end;
  int line = 0;
  std::string value;  // of data, name, text and op
  std::int64_t integer = 0;
  double real = 0;
};

/// The tokens, the last of kind `end`. Comments are gone, raw blocks are data. Throws ModelError
/// with `file` and line.
std::vector<JinjaToken> lex_jinja(std::string_view source, const std::string& file);

/// How errors in a template are told, on one line.
std::string template_error(const std::string& file, int line, const std::string& why);

/// Throws the ModelError of something in a template that cannot be.
[[noreturn]] void refuse_template(const std::string& file, int line, const std::string& why);

}  // namespace ferry
