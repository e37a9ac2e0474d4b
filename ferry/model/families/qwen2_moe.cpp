// Qwen2-MoE (Qwen1.5-MoE, Qwen2-57B-A14B): biases on q, k and v, and a shared expert whose result a
// sigmoid gate scales.
#include <nlohmann/json.hpp>

#include "ferry/model/config_reader.h"
#include "ferry/model/families/families.h"

namespace ferry {

namespace {

void read_fields(const ConfigReader& in, ModelConfig& config) {
  config.attention_bias = in.flag_or("qkv_bias", true);
  config.moe.shared_inter = in.size("shared_expert_intermediate_size", kMaxWidth);
  config.moe.shared_gate = true;
}

void write_fields(const ModelConfig& config, nlohmann::json& fields) {
  fields["qkv_bias"] = config.attention_bias;
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
