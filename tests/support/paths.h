// Where the source tree lies. A function, so that one object file alone depends on it: the others
// come from the compiler's cache in every checkout.
#pragma once

#include <filesystem>

namespace ferry::test {

std::filesystem::path source_dir();

}  // namespace ferry::test
