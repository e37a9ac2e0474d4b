// How our code throws the errors of ferry/error.h: with a formatted message. Nearly every file
// includes this, so it takes the light header of fmt; who formats more than numbers and text
// (joined lists, pointers) includes <fmt/core.h>.
#pragma once

#include <fmt/core.h>

#include <string>
#include <utility>

#include "ferry/error.h"

namespace ferry {

/// Throws E with a formatted message.
template <class E, class... Args>
[[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) {
  throw E(fmt::format(format, std::forward<Args>(args)...));
}

[[noreturn]] void broken_contract(const char* condition,
                                  const std::string& message,
                                  const char* file,
                                  int line);

}  // namespace ferry

/// Throws BrokenContract with the condition, the formatted message and the place. (The place by
/// macros: clang-tidy 14 cannot read GCC 12's <source_location>.)
#define FERRY_CHECK(cond, ...)                                                       \
  do {                                                                               \
    if (!(cond)) [[unlikely]] {                                                      \
      ::ferry::broken_contract(#cond, fmt::format(__VA_ARGS__), __FILE__, __LINE__); \
    }                                                                                \
  } while (false)
