// Runs a parsed chat template.
#pragma once

#include <cstddef>
#include <ctime>
#include <optional>
#include <string>
#include <string_view>

#include "ferry/text/jinja/ast.h"

namespace ferry {

struct JinjaLimits {
  std::size_t steps = 20'000'000;    ///< expressions, items and pieces of text; about two seconds
  std::size_t max_text = 16U << 20;  ///< bytes of the result, and of any text on the way
};

/// The text that the template makes of `variables`. `now` is what strftime_now() tells; without it
/// the clock does. Throws ConfigError with `file` and line for everything that goes wrong, which
/// includes raise_exception() and the limits. Threads: `body` may be shared.
std::string run_jinja(const JinjaBody& body,
                      const std::string& file,
                      std::vector<JinjaNamed> variables,
                      const JinjaLimits& limits,
                      std::optional<std::time_t> now);

/// Whether there is a function of this name without any macro: range, namespace, ...
bool is_jinja_function(std::string_view name);

}  // namespace ferry
