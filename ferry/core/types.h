// The words of ferry/types.h, and arithmetic that all rooms need beside them.
#pragma once

#include <cstdint>

#include "ferry/types.h"

namespace ferry {

/// Smallest multiple of `unit` that is at least `n`.
constexpr std::int64_t round_up(std::int64_t n, std::int64_t unit) {
  return (n + unit - 1) / unit * unit;
}

constexpr std::int64_t ceil_div(std::int64_t n, std::int64_t unit) { return (n + unit - 1) / unit; }

}  // namespace ferry
