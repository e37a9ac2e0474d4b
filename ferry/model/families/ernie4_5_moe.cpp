// ERNIE-4.5 (21B-A3B, 300B-A47B, text): softmax over all experts and a bias for the choice alone,
// shared experts without a gate, pairs of neighbours that turn, no biases.
#include <fmt/core.h>

#include <nlohmann/json.hpp>

#include "ferry/model/families/families.h"
#include "ferry/model/family_fields.h"

namespace ferry {

namespace {

constexpr ExpertFields kExperts{.experts = "moe_num_experts", .topk = "moe_k"};
/// Weights are divided by their sum, or by moe_norm_min where that is more: below this the two
/// cannot be told apart.
constexpr double kMostNormMin = 1e-9;

/// Sparse are, from one layer to another, those that moe_layer_interval divides.
void read_layers(const ConfigReader& in, ModelConfig& config) {
  const auto number = [&](const char* key, int fallback) {
    const std::vector<std::int32_t> found = in.integers(key, -1, kMaxWidth);
    if (found.size() > 1) in.refuse(key, "one number (experts of pictures are not supported)");
    return found.empty() || found.front() < 0 ? fallback : found.front();
  };
  const int first = number("moe_layer_start_index", 0);
  const int last = number("moe_layer_end_index", config.layers - 1);
  const int interval = in.size_or("moe_layer_interval", kMaxWidth, 1);
  for (int i = 0; i < config.layers; ++i) {
    const bool sparse = i >= first && i <= last && (i + 1) % interval == 0;
    config.layer_kinds[static_cast<std::size_t>(i)] = sparse ? LayerKind::sparse : LayerKind::dense;
  }
  if (config.sparse_layers() < config.layers)
    config.dense_inter = in.size("intermediate_size", kMaxWidth);
}

void read_fields(const ConfigReader& in, ModelConfig& config) {
  require_full_attention(in);
  read_layers(in, config);
  if (in.flag_or("use_bias", false)) in.refuse("use_bias", "false (biases are not supported here)");
  config.rope.interleaved = true;
  read_experts(in, kExperts, config);
  MoeConfig& moe = config.moe;
  moe.router.renormalize = true;
  moe.selection_bias = true;
  if (in.positive_or("moe_norm_min", kMostNormMin) > kMostNormMin)
    in.refuse("moe_norm_min", fmt::format("at most {}", kMostNormMin));
  const auto shared = in.integers("moe_num_shared_experts", 0, kMaxWidth / moe.inter);
  if (!shared.empty()) moe.shared_inter = shared.front() * moe.inter;
}

void write_fields(const ModelConfig& config, nlohmann::json& fields) {
  write_experts(config, kExperts, fields);
  fields["intermediate_size"] = config.dense_inter;
  fields["moe_layer_start_index"] = config.layers > 1 ? 1 : 0;
  fields["moe_layer_end_index"] = -1;
  fields["moe_layer_interval"] = 1;
  fields["moe_num_shared_experts"] = 2;
  fields["use_bias"] = false;
}

TensorNames names() {
  TensorNames names = kQwenTensorNames;
  names.selection_bias = "model.layers.{layer}.mlp.moe_statics.e_score_correction_bias";
  names.shared_gate = "model.layers.{layer}.mlp.shared_experts.gate_proj.weight";
  names.shared_up = "model.layers.{layer}.mlp.shared_experts.up_proj.weight";
  names.shared_down = "model.layers.{layer}.mlp.shared_experts.down_proj.weight";
  return names;
}

}  // namespace

ModelFamily ernie4_5_moe_family() {
  return {.architecture = "Ernie4_5_MoeForCausalLM",
          .model_type = "ernie4_5_moe",
          .names = names(),
          .read = read_fields,
          .write = write_fields};
}

}  // namespace ferry
