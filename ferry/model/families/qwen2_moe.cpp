// Qwen2-MoE (Qwen1.5-MoE, Qwen2-57B-A14B): biases on q, k and v, and a shared expert whose result a
// sigmoid gate scales.
#include <nlohmann/json.hpp>

#include "ferry/model/families/families.h"
#include "ferry/model/family_fields.h"

namespace ferry {

namespace {

void read_fields(const ConfigReader& in, ModelConfig& config) {
  require_full_attention(in);
  read_sparse_step(in, config);
  read_experts(in, {}, config);
  config.attention_bias = in.flag_or("qkv_bias", true);
  config.moe.router.renormalize = in.flag_or("norm_topk_prob", false);
  config.moe.shared_inter = in.size("shared_expert_intermediate_size", kMaxWidth);
  config.moe.shared_gate = true;
}

void write_fields(const ModelConfig& config, nlohmann::json& fields) {
  write_sparse_step(config, fields);
  write_experts(config, {}, fields);
  fields["qkv_bias"] = true;
  fields["norm_topk_prob"] = true;
  fields["shared_expert_intermediate_size"] = config.moe.shared_inter;
}

}  // namespace

ModelFamily qwen2_moe_family() {
  return {.architecture = "Qwen2MoeForCausalLM",
          .model_type = "qwen2_moe",
          .names = kQwenTensorNames,
          .read = read_fields,
          .write = write_fields};
}

}  // namespace ferry
