// Tests that take minutes run only where they are asked for (scripts/test.sh --long), and runs that
// are slow in themselves leave out what the main run has shown.
#pragma once

#include <cstdlib>
#include <string_view>

namespace ferry {

/// Whether FERRY_LONG_TESTS is set.
inline bool long_tests() { return std::getenv("FERRY_LONG_TESTS") != nullptr; }

/// Whether everything takes several times as long as in the main run: under sanitizers, with scalar
/// kernels and where FERRY_SLOW_RUN says so (in an emulator), unless long tests are asked for.
inline bool slow_run() {
  if (long_tests()) return false;
#ifdef FERRY_SANITIZE
  return true;
#else
  if (std::getenv("FERRY_SLOW_RUN") != nullptr) return true;
  const char* isa = std::getenv("FERRY_ISA");
  return isa != nullptr && std::string_view(isa) == "scalar";
#endif
}

}  // namespace ferry
