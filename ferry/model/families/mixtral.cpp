// Mixtral (8x7B, 8x22B): no biases, no shared expert; a window over the last positions where
// config.json sets one.
#include <nlohmann/json.hpp>

#include "ferry/model/families/families.h"
#include "ferry/model/family_fields.h"

namespace ferry {

namespace {

constexpr ExpertFields kExperts{.experts = "num_local_experts", .inter = "intermediate_size"};

void read_fields(const ConfigReader& in, ModelConfig& config) {
  read_experts(in, kExperts, config);
  config.moe.router.renormalize = true;
  const int window = in.size_or("sliding_window", kMaxWidth, 0);
  if (window == 0) return;
  for (LayerAttention& layer : config.layer_attention)
    layer.span = {AttentionSpan::Kind::window, window};
}

void write_fields(const ModelConfig& config, nlohmann::json& fields) {
  write_experts(config, kExperts, fields);
  fields["sliding_window"] = nullptr;
}

TensorNames names() {
  TensorNames names = kQwenTensorNames;
  names.router = "model.layers.{layer}.block_sparse_moe.gate.weight";
  names.expert_gate = "model.layers.{layer}.block_sparse_moe.experts.{expert}.w1.weight";
  names.expert_up = "model.layers.{layer}.block_sparse_moe.experts.{expert}.w3.weight";
  names.expert_down = "model.layers.{layer}.block_sparse_moe.experts.{expert}.w2.weight";
  return names;
}

}  // namespace

ModelFamily mixtral_family() {
  return {.architecture = "MixtralForCausalLM",
          .model_type = "mixtral",
          .names = names(),
          .read = read_fields,
          .write = write_fields};
}

}  // namespace ferry
