// GLM-4.5 and -4.5-Air: heads of which half turn, biases on q, k and v, RMS norm over each head
// where config.json says so; experts and router are DeepSeek-V3's.
#include <nlohmann/json.hpp>

#include "ferry/model/families/deepseek.h"
#include "ferry/model/families/families.h"
#include "ferry/model/family_fields.h"

namespace ferry {

namespace {

constexpr double kTurnedPart = 0.5;  // of a head

void read_fields(const ConfigReader& in, ModelConfig& config) {
  require_full_attention(in);
  config.attention_bias = in.flag_or("attention_bias", false);
  if (in.flag_or("use_qk_norm", false)) config.qk_norm = QkNorm::head;
  read_deepseek_v3_experts(in, config);
}

void write_fields(const ModelConfig& config, nlohmann::json& fields) {
  write_deepseek_experts(config, fields);
  fields["partial_rotary_factor"] = kTurnedPart;
  fields["attention_bias"] = true;
  fields["use_qk_norm"] = true;
  fields["n_group"] = 1;
  fields["topk_group"] = 1;
  fields["norm_topk_prob"] = true;
  fields["routed_scaling_factor"] = 2.5;
  fields["num_nextn_predict_layers"] = config.predictors;
}

}  // namespace

ModelFamily glm4_moe_family() {
  return {.architecture = "Glm4MoeForCausalLM",
          .model_type = "glm4_moe",
          .names = with_draft_names(deepseek_expert_names()),
          .read = read_fields,
          .write = write_fields};
}

}  // namespace ferry
