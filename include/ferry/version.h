// The version of these headers and of the library. CMake reads the numbers from here.
#pragma once

#include <string_view>

#include "ferry/export.h"

#define FERRY_VERSION_MAJOR 0
#define FERRY_VERSION_MINOR 1
#define FERRY_VERSION_PATCH 0

namespace ferry {

/// "0.1.0", of the library that runs; the macros are those of the headers that were compiled.
FERRY_API std::string_view version();

}  // namespace ferry
