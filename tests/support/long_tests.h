// Tests that take minutes run only where they are asked for (scripts/test.sh --long), and runs that
// are slow in themselves leave out what the main run has shown.
#pragma once

#include <cstdlib>
#include <string_view>

namespace ferry {

/// Whether FERRY_LONG_TESTS is set.
inline bool long_tests() { return std::getenv("FERRY_LONG_TESTS") != nullptr; }

/// Whether everything takes several times as long as in the main run: under sanitizers and with
/// scalar kernels, unless long tests are asked for.
inline bool slow_run() {
  if (long_tests()) return false;
#ifdef FERRY_SANITIZE
  return true;
#else
  const char* isa = std::getenv("FERRY_ISA");
  return isa != nullptr && std::string_view(isa) == "scalar";
#endif
}

}  // namespace ferry
