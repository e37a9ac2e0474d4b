// Tests that take minutes run only where they are asked for: scripts/test.sh --long.
#pragma once

#include <cstdlib>

namespace ferry {

/// Whether FERRY_LONG_TESTS is set.
inline bool long_tests() { return std::getenv("FERRY_LONG_TESTS") != nullptr; }

}  // namespace ferry
