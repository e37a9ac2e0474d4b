// Qwen3-MoE (Qwen3-30B-A3B, Qwen3-235B-A22B): RMS norm over each head of q and k, no shared expert,
// one flag for the biases of all four projections.
#include <nlohmann/json.hpp>

#include "ferry/model/families/families.h"
#include "ferry/model/family_fields.h"

namespace ferry {

namespace {

void read_fields(const ConfigReader& in, ModelConfig& config) {
  require_full_attention(in);
  read_sparse_step(in, config);
  read_experts(in, {}, config);
  config.attention_bias = in.flag_or("attention_bias", false);
  config.output_bias = config.attention_bias;
  config.qk_norm = QkNorm::head;
  config.moe.router.renormalize = in.flag_or("norm_topk_prob", false);
}

void write_fields(const ModelConfig& config, nlohmann::json& fields) {
  write_sparse_step(config, fields);
  write_experts(config, {}, fields);
  fields["attention_bias"] = false;
  fields["norm_topk_prob"] = true;
}

}  // namespace

ModelFamily qwen3_moe_family() {
  return {.architecture = "Qwen3MoeForCausalLM",
          .model_type = "qwen3_moe",
          .names = kQwenTensorNames,
          .read = read_fields,
          .write = write_fields};
}

}  // namespace ferry
