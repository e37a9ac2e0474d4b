#include "ferry/model/families/deepseek.h"

#include <fmt/core.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "ferry/model/family_fields.h"

namespace ferry {

namespace {

constexpr ExpertFields kExperts{.experts = "n_routed_experts"};
constexpr int kMaxDim = Rope::kMaxDim;

/// Of the layers behind the dense first ones, those that moe_layer_freq does not divide are dense
/// too.
void read_layers(const ConfigReader& in, ModelConfig& config) {
  read_dense_first(in, config);
  const int step = in.size_or("moe_layer_freq", kMaxWidth, 1);
  for (int i = 0; i < config.layers; ++i)
    if (i % step != 0) config.layer_kinds[static_cast<std::size_t>(i)] = LayerKind::dense;
  if (config.sparse_layers() < config.layers)
    config.dense_inter = in.size("intermediate_size", kMaxWidth);
}

void read_groups(const ConfigReader& in, RouterOptions& router) {
  router.groups = in.size_or("n_group", kMaxExpertGroups, 1);
  if (router.experts % router.groups != 0)
    in.refuse("n_group", fmt::format("a divisor of {} experts", router.experts));
  router.topk_groups = in.size_or("topk_group", router.groups, router.groups);
  const int eligible = router.experts / router.groups * router.topk_groups;
  if (router.topk > eligible) {
    in.refuse("num_experts_per_tok",
              fmt::format("at most the {} experts of {} groups", eligible, router.topk_groups));
  }
}

}  // namespace

TensorNames deepseek_expert_names() {
  TensorNames names = kQwenTensorNames;
  names.selection_bias = "model.layers.{layer}.mlp.gate.e_score_correction_bias";
  names.shared_gate = "model.layers.{layer}.mlp.shared_experts.gate_proj.weight";
  names.shared_up = "model.layers.{layer}.mlp.shared_experts.up_proj.weight";
  names.shared_down = "model.layers.{layer}.mlp.shared_experts.down_proj.weight";
  return names;
}

TensorNames deepseek_names() {
  TensorNames names = deepseek_expert_names();
  names.query_down = "model.layers.{layer}.self_attn.q_a_proj.weight";
  names.query_down_norm = "model.layers.{layer}.self_attn.q_a_layernorm.weight";
  names.query_up = "model.layers.{layer}.self_attn.q_b_proj.weight";
  names.latent_down = "model.layers.{layer}.self_attn.kv_a_proj_with_mqa.weight";
  names.latent_norm = "model.layers.{layer}.self_attn.kv_a_layernorm.weight";
  names.latent_up = "model.layers.{layer}.self_attn.kv_b_proj.weight";
  return names;
}

TensorNames with_draft_names(TensorNames names) {
  names.draft_embedding_norm = "model.layers.{layer}.enorm.weight";
  names.draft_hidden_norm = "model.layers.{layer}.hnorm.weight";
  names.draft_projection = "model.layers.{layer}.eh_proj.weight";
  names.draft_final_norm = "model.layers.{layer}.shared_head.norm.weight";
  return names;
}

void read_latent_attention(const ConfigReader& in, ModelConfig& config, bool head_share) {
  for (const char* key : {"attention_bias", "mlp_bias"})
    if (in.flag_or(key, false)) in.refuse(key, "false (biases are not supported here)");
  LatentConfig& latent = config.latent;
  latent.rank = in.size("kv_lora_rank", kMaxWidth);
  latent.query_rank = in.size_or("q_lora_rank", kMaxWidth, 0);
  latent.plain_dim = in.size("qk_nope_head_dim", kMaxDim);
  latent.value_dim = in.size("v_head_dim", kMaxDim);
  const int rope_dim = in.size("qk_rope_head_dim", kMaxDim);
  if (rope_dim % 2 != 0) in.refuse("qk_rope_head_dim", "an even number");
  config.head_dim = latent.plain_dim + rope_dim;
  config.rope =
      read_rope(in, head_share ? config.head_dim : rope_dim, config.max_positions, rope_dim);
  config.rope.interleaved = in.flag_or("rope_interleave", true);
  for (LayerAttention& layer : config.layer_attention) layer.mixer = kLatentAttention;
}

void read_deepseek_experts(const ConfigReader& in, ModelConfig& config) {
  read_layers(in, config);
  read_experts(in, kExperts, config);
  MoeConfig& moe = config.moe;
  const auto shared = in.integers("n_shared_experts", 0, kMaxWidth / moe.inter);
  if (!shared.empty()) moe.shared_inter = shared.front() * moe.inter;
  read_groups(in, moe.router);
  moe.router.renormalize = in.flag_or("norm_topk_prob", false);
  moe.router.scaling = static_cast<float>(in.positive_or("routed_scaling_factor", 1.0));
}

void read_deepseek(const ConfigReader& in, ModelConfig& config) {
  read_latent_attention(in, config);
  read_deepseek_experts(in, config);
}

void read_deepseek_v3_experts(const ConfigReader& in, ModelConfig& config) {
  read_deepseek_experts(in, config);
  if (in.text_or("topk_method", "noaux_tc") != "noaux_tc") in.refuse("topk_method", "\"noaux_tc\"");
  if (in.text_or("scoring_func", "sigmoid") != "sigmoid") in.refuse("scoring_func", "\"sigmoid\"");
  RouterOptions& router = config.moe.router;
  router.score = RouterOptions::Score::sigmoid;
  config.moe.selection_bias = true;
  score_groups_by_two(in, router);
}

void score_groups_by_two(const ConfigReader& in, RouterOptions& router) {
  router.group_score = RouterOptions::GroupScore::sum_of_two;
  if (router.groups > 1 && router.experts / router.groups < 2)
    in.refuse("n_group", "groups of two experts or more");
}

void read_deepseek_v3(const ConfigReader& in, ModelConfig& config) {
  read_latent_attention(in, config);
  read_deepseek_v3_experts(in, config);
}

void write_deepseek(const ModelConfig& config, bool query_rank, nlohmann::json& fields) {
  // The ratios of DeepSeek-V3, whose heads have 128 elements that do not turn.
  const int head_dim = config.head_dim;
  fields["num_key_value_heads"] = fields["num_attention_heads"];
  fields.erase("head_dim");
  fields["qk_nope_head_dim"] = head_dim;
  fields["qk_rope_head_dim"] = head_dim / 2;
  fields["v_head_dim"] = head_dim;
  fields["kv_lora_rank"] = 4 * head_dim;
  fields["q_lora_rank"] = nullptr;
  if (query_rank) fields["q_lora_rank"] = 12 * head_dim;
  fields["moe_layer_freq"] = 1;
  write_deepseek_experts(config, fields);
}

void write_deepseek_experts(const ModelConfig& config, nlohmann::json& fields) {
  write_experts(config, kExperts, fields);
  write_dense_first(config, fields);
  fields["n_shared_experts"] = std::max(1, config.moe.shared_inter / config.moe.inter);
}

void write_groups(const ModelConfig& config, nlohmann::json& fields) {
  const int experts = config.moe.experts;
  const int groups = experts % 8 == 0 && experts >= 32 ? 8 : experts % 4 == 0 ? 4 : 1;
  const bool room = experts / groups >= 2 && config.moe.topk <= experts / 2;
  fields["n_group"] = room ? groups : 1;
  fields["topk_group"] = room ? std::max(1, groups / 2) : 1;
}

}  // namespace ferry
