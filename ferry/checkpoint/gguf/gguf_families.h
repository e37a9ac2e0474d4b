// The table of architectures, for gguf_architecture.cpp only.
#pragma once

#include <span>

#include "ferry/checkpoint/gguf/gguf_architecture.h"

namespace ferry {

std::span<const GgufArchitecture> gguf_architectures();

}  // namespace ferry
