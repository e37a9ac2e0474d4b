// OLMoE (1B-7B): RMS norm over all heads of q together, and of k; weights are not renormalised.
#include <nlohmann/json.hpp>

#include "ferry/model/families/families.h"
#include "ferry/model/family_fields.h"

namespace ferry {

namespace {

constexpr ExpertFields kExperts{.inter = "intermediate_size"};

void read_fields(const ConfigReader& in, ModelConfig& config) {
  require_full_attention(in);
  read_experts(in, kExperts, config);
  config.moe.router.renormalize = in.flag_or("norm_topk_prob", false);
  config.attention_bias = in.flag_or("attention_bias", false);
  config.output_bias = config.attention_bias;
  config.qk_norm = QkNorm::whole;
  if (in.has("clip_qkv")) in.refuse("clip_qkv", "null (clipped projections are not supported)");
}

void write_fields(const ModelConfig& config, nlohmann::json& fields) {
  write_experts(config, kExperts, fields);
  fields["norm_topk_prob"] = false;
  fields["clip_qkv"] = nullptr;
}

}  // namespace

ModelFamily olmoe_family() {
  return {.architecture = "OlmoeForCausalLM",
          .model_type = "olmoe",
          .names = kQwenTensorNames,
          .read = read_fields,
          .write = write_fields};
}

}  // namespace ferry
