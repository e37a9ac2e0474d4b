#include "ferry/model/family.h"

#include <algorithm>
#include <array>

#include "ferry/core/error.h"
#include "ferry/model/families/families.h"

namespace ferry {

const TensorNames kQwenTensorNames = {
    .embedding = "model.embed_tokens.weight",
    .final_norm = "model.norm.weight",
    .lm_head = "lm_head.weight",
    .attention_norm = "model.layers.{layer}.input_layernorm.weight",
    .ffn_norm = "model.layers.{layer}.post_attention_layernorm.weight",
    .q_weight = "model.layers.{layer}.self_attn.q_proj.weight",
    .k_weight = "model.layers.{layer}.self_attn.k_proj.weight",
    .v_weight = "model.layers.{layer}.self_attn.v_proj.weight",
    .q_bias = "model.layers.{layer}.self_attn.q_proj.bias",
    .k_bias = "model.layers.{layer}.self_attn.k_proj.bias",
    .v_bias = "model.layers.{layer}.self_attn.v_proj.bias",
    .o_weight = "model.layers.{layer}.self_attn.o_proj.weight",
    .o_bias = "model.layers.{layer}.self_attn.o_proj.bias",
    .q_norm = "model.layers.{layer}.self_attn.q_norm.weight",
    .k_norm = "model.layers.{layer}.self_attn.k_norm.weight",
    .dense_gate = "model.layers.{layer}.mlp.gate_proj.weight",
    .dense_up = "model.layers.{layer}.mlp.up_proj.weight",
    .dense_down = "model.layers.{layer}.mlp.down_proj.weight",
    .router = "model.layers.{layer}.mlp.gate.weight",
    .expert_gate = "model.layers.{layer}.mlp.experts.{expert}.gate_proj.weight",
    .expert_up = "model.layers.{layer}.mlp.experts.{expert}.up_proj.weight",
    .expert_down = "model.layers.{layer}.mlp.experts.{expert}.down_proj.weight",
    .shared_gate = "model.layers.{layer}.mlp.shared_expert.gate_proj.weight",
    .shared_up = "model.layers.{layer}.mlp.shared_expert.up_proj.weight",
    .shared_down = "model.layers.{layer}.mlp.shared_expert.down_proj.weight",
    .shared_scale = "model.layers.{layer}.mlp.shared_expert_gate.weight",
};

std::span<const ModelFamily> model_families() {
  static const std::array families = {deepseek_v2_family(),
                                      deepseek_v3_family(),
                                      glm4_moe_family(),
                                      gpt_oss_family(),
                                      kimi_k2_family(),
                                      llama4_family(),
                                      llama4_text_family(),
                                      mixtral_family(),
                                      olmoe_family(),
                                      qwen2_moe_family(),
                                      qwen3_moe_family()};
  return families;
}

const ModelFamily* find_family(std::string_view name) {
  for (const ModelFamily& family : model_families()) {
    if (name == family.architecture || name == family.model_type) return &family;
  }
  return nullptr;
}

const ModelFamily& family_of(const ModelConfig& config) {
  const ModelFamily* family = find_family(config.model_type);
  FERRY_CHECK(family != nullptr, "model type {} is not in the table", config.model_type);
  return *family;
}

std::string tensor_name(const TensorNames& names, std::string_view pattern, int layer, int expert) {
  std::string name(names.prefix);
  name += pattern;
  const auto fill = [&](std::string_view key, int number) {
    const auto at = name.find(key);
    if (at != std::string::npos) name.replace(at, key.size(), std::to_string(number));
  };
  fill("{layer}", layer);
  fill("{expert}", expert);
  return name;
}

std::int64_t TensorSpec::elements() const {
  std::int64_t n = 1;
  for (const std::int64_t d : shape) n *= d;
  return n;
}

}  // namespace ferry
