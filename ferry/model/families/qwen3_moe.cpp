// Qwen3-MoE (Qwen3-30B-A3B, Qwen3-235B-A22B): RMS norm over each head of q and k, no shared expert,
// one flag for the biases of all four projections.
#include <nlohmann/json.hpp>

#include "ferry/model/config_reader.h"
#include "ferry/model/families/families.h"

namespace ferry {

namespace {

void read_fields(const ConfigReader& in, ModelConfig& config) {
  config.attention_bias = in.flag_or("attention_bias", false);
  config.output_bias = config.attention_bias;
  config.qk_norm = true;
}

void write_fields(const ModelConfig& config, nlohmann::json& fields) {
  fields["attention_bias"] = config.attention_bias;
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
