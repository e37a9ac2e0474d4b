// The families this program knows, one function a file. family.cpp lists them.
#pragma once

#include "ferry/model/family.h"

namespace ferry {

ModelFamily deepseek_v2_family();
ModelFamily deepseek_v3_family();
ModelFamily deepseek_v32_family();
ModelFamily dots1_family();
ModelFamily ernie4_5_moe_family();
ModelFamily glm4_moe_family();
ModelFamily glm4_moe_lite_family();
ModelFamily glm_moe_dsa_family();
ModelFamily gpt_oss_family();
ModelFamily hunyuan_v1_moe_family();
ModelFamily kimi_k2_family();
ModelFamily kimi_k25_family();
ModelFamily lfm2_moe_family();
ModelFamily llama4_family();
ModelFamily llama4_text_family();
ModelFamily minimax_m2_family();
ModelFamily mistral4_family();
ModelFamily mixtral_family();
ModelFamily olmoe_family();
ModelFamily qwen2_moe_family();
ModelFamily qwen3_5_moe_family();
ModelFamily qwen3_5_moe_text_family();
ModelFamily qwen3_moe_family();
ModelFamily qwen3_next_family();

}  // namespace ferry
