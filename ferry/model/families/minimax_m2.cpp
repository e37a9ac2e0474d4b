// MiniMax-M2, -M2.1, -M2.5 and -M2.7: RMS norm over all heads of q together, and of k; heads of
// which a part turns; sigmoid of each expert and a bias for the choice alone, without groups.
#include <fmt/core.h>

#include <nlohmann/json.hpp>

#include "ferry/model/families/families.h"
#include "ferry/model/family_fields.h"

namespace ferry {

namespace {

constexpr ExpertFields kExperts{.experts = "num_local_experts", .inter = "intermediate_size"};

/// What published files say of themselves beside the fields of transformers' class, where there is
/// but one meaning.
void check_published_fields(const ConfigReader& in) {
  if (in.text_or("scoring_func", "sigmoid") != "sigmoid") in.refuse("scoring_func", "\"sigmoid\"");
  if (in.text_or("qk_norm_type", "per_layer") != "per_layer")
    in.refuse("qk_norm_type", "\"per_layer\"");
  for (const char* key : {"use_qk_norm", "use_routing_bias"})
    if (!in.flag_or(key, true)) in.refuse(key, "true");
  for (const std::int32_t width : in.integers("shared_intermediate_size", 0, kMaxWidth))
    if (width != 0) in.refuse("shared_intermediate_size", "0 (no shared expert)");
  for (const std::int32_t type : in.integers("attn_type_list", 0, kMaxWidth))
    if (type != 1) in.refuse("attn_type_list", "1 for every layer (softmax attention)");
}

/// Published files have the number instead of partial_rotary_factor.
void read_rotary_dim(const ConfigReader& in, ModelConfig& config) {
  if (!in.has("rotary_dim") || config.rope.dim != config.head_dim) return;
  config.rope.dim = in.size("rotary_dim", config.head_dim);
  if (config.rope.dim % 2 != 0) in.refuse("rotary_dim", "an even number");
}

void read_fields(const ConfigReader& in, ModelConfig& config) {
  require_full_attention(in);
  check_published_fields(in);
  read_rotary_dim(in, config);
  config.qk_norm = QkNorm::whole;
  read_experts(in, kExperts, config);
  config.moe.router.score = RouterOptions::Score::sigmoid;
  config.moe.router.renormalize = true;
  config.moe.selection_bias = true;
}

void write_fields(const ModelConfig& config, nlohmann::json& fields) {
  write_experts(config, kExperts, fields);
  fields["rotary_dim"] = config.head_dim / 2;
  fields["scoring_func"] = "sigmoid";
  fields["use_qk_norm"] = true;
  fields["use_routing_bias"] = true;
}

TensorNames names() {
  TensorNames names = kQwenTensorNames;
  names.router = "model.layers.{layer}.block_sparse_moe.gate.weight";
  names.selection_bias = "model.layers.{layer}.block_sparse_moe.e_score_correction_bias";
  names.expert_gate = "model.layers.{layer}.block_sparse_moe.experts.{expert}.w1.weight";
  names.expert_up = "model.layers.{layer}.block_sparse_moe.experts.{expert}.w3.weight";
  names.expert_down = "model.layers.{layer}.block_sparse_moe.experts.{expert}.w2.weight";
  return names;
}

}  // namespace

ModelFamily minimax_m2_family() {
  return {.architecture = "MiniMaxM2ForCausalLM",
          .model_type = "minimax_m2",
          .names = names(),
          .read = read_fields,
          .write = write_fields};
}

}  // namespace ferry
