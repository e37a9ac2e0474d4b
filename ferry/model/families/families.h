// The families this program knows, one function a file. family.cpp lists them.
#pragma once

#include "ferry/model/family.h"

namespace ferry {

ModelFamily mixtral_family();
ModelFamily olmoe_family();
ModelFamily qwen2_moe_family();
ModelFamily qwen3_moe_family();

}  // namespace ferry
