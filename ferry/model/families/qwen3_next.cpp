// Qwen3-Next and Qwen3.5-MoE (also Qwen3.6): gated delta net in three layers of four, attention
// with an output gate in the fourth; norms that multiply by 1 + weight; a quarter of each head
// turns; a shared expert whose result a sigmoid gate scales. Qwen3.5 lies inside a checkpoint that
// sees pictures too, has its projections apart, and no dense layers.
#include <fmt/core.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "ferry/model/families/families.h"
#include "ferry/model/family_fields.h"

namespace ferry {

namespace {

using nlohmann::json;

constexpr int kInterval = 4;  // of layers with attention
constexpr int kMostHeads = 1 << 14;
constexpr int kMostTaps = 64;
constexpr const char* kPredictors = "mtp_num_hidden_layers";

void read_mixers(const ConfigReader& in, ModelConfig& config) {
  constexpr const char* kKey = "layer_types";
  const bool listed = in.states(kKey);
  const int interval = in.size_or("full_attention_interval", kMaxWidth, kInterval);
  const json types = listed ? in.value(kKey) : json::array();
  bool any = false;
  for (std::size_t i = 0; i < config.layer_attention.size(); ++i) {
    bool full = (i + 1) % static_cast<std::size_t>(interval) == 0;
    if (listed) {
      const bool whole = types.is_array() && types.size() == config.layer_attention.size();
      if (!whole || (types[i] != "linear_attention" && types[i] != "full_attention")) {
        in.refuse(kKey,
                  fmt::format("\"linear_attention\" or \"full_attention\" for each of {} layers",
                              config.layers));
      }
      full = types[i] == "full_attention";
    }
    if (!full) config.layer_attention[i].mixer = kGatedDeltaNet;
    any = any || full;
  }
  if (!any) {
    in.refuse(listed ? kKey : "num_hidden_layers",
              "at least one layer with \"full_attention\" (others are not supported)");
  }
}

void read_delta(const ConfigReader& in, ModelConfig& config) {
  DeltaConfig& delta = config.delta;
  delta.key_heads = in.size("linear_num_key_heads", kMostHeads);
  delta.value_heads = in.size("linear_num_value_heads", kMostHeads);
  delta.key_dim = in.size("linear_key_head_dim", Rope::kMaxDim);
  delta.value_dim = in.size("linear_value_head_dim", Rope::kMaxDim);
  delta.taps = in.size("linear_conv_kernel_dim", kMostTaps);
  if (delta.value_heads % delta.key_heads != 0) {
    in.refuse("linear_num_value_heads",
              fmt::format("a multiple of linear_num_key_heads {}", delta.key_heads));
  }
}

void read_both(const ConfigReader& in, ModelConfig& config) {
  read_mixers(in, config);
  read_delta(in, config);
  read_experts(in, {}, config);
  if (!in.flag_or("attn_output_gate", true))
    in.refuse("attn_output_gate", "true (attention without its gate is not supported)");
  config.attention_gate = true;
  config.attention_bias = in.flag_or("attention_bias", false);
  config.output_bias = config.attention_bias;
  config.norms_from_one = true;
  config.qk_norm = QkNorm::head;
  config.moe.router.renormalize = true;
  config.moe.shared_inter = in.size("shared_expert_intermediate_size", kMaxWidth);
  config.moe.shared_gate = true;
}

void read_next(const ConfigReader& in, ModelConfig& config) {
  read_sparse_step(in, config);
  read_both(in, config);
  config.delta.by_key_head = true;
  config.moe.router.renormalize = in.flag_or("norm_topk_prob", true);
}

void write_both(const ModelConfig& config, json& fields) {
  write_experts(config, {}, fields);
  fields["shared_expert_intermediate_size"] = config.moe.shared_inter;
  fields["attention_bias"] = false;
  fields["partial_rotary_factor"] = 0.25;
  fields["full_attention_interval"] = std::min(kInterval, config.layers);
  fields["linear_num_key_heads"] = config.heads;
  fields["linear_num_value_heads"] = 2 * config.heads;
  fields["linear_key_head_dim"] = config.head_dim;
  fields["linear_value_head_dim"] = config.head_dim;
  fields["linear_conv_kernel_dim"] = 4;
}

void write_next(const ModelConfig& config, json& fields) {
  write_sparse_step(config, fields);
  write_both(config, fields);
  fields["norm_topk_prob"] = true;
  fields["num_nextn_predict_layers"] = config.predictors;
}

void write_text(const ModelConfig& config, json& fields) {
  write_both(config, fields);
  fields["attn_output_gate"] = true;
  fields[kPredictors] = config.predictors;
}

void write_with_pictures(const ModelConfig& config, json& fields) {
  write_text(config, fields);
  write_text_part("qwen3_5_moe_text", fields);
}

TensorNames next_names() {
  TensorNames names = kQwenTensorNames;
  names.delta_in = "model.layers.{layer}.linear_attn.in_proj_qkvz.weight";
  names.delta_rates = "model.layers.{layer}.linear_attn.in_proj_ba.weight";
  names.delta_taps = "model.layers.{layer}.linear_attn.conv1d.weight";
  names.delta_log_rate = "model.layers.{layer}.linear_attn.A_log";
  names.delta_rate_bias = "model.layers.{layer}.linear_attn.dt_bias";
  names.delta_norm = "model.layers.{layer}.linear_attn.norm.weight";
  names.delta_out = "model.layers.{layer}.linear_attn.out_proj.weight";
  return names;
}

/// The layer that predicts further tokens lies beside the model.
TensorNames with_draft_beside(TensorNames names) {
  names.draft_embedding_norm = "mtp.pre_fc_norm_embedding.weight";
  names.draft_hidden_norm = "mtp.pre_fc_norm_hidden.weight";
  names.draft_projection = "mtp.fc.weight";
  names.draft_final_norm = "mtp.norm.weight";
  names.draft_place = "mtp.layers.{layer}.";
  return names;
}

TensorNames text_names() {
  TensorNames names = next_names();
  names.delta_in = "model.layers.{layer}.linear_attn.in_proj_qkv.weight";
  names.delta_gate = "model.layers.{layer}.linear_attn.in_proj_z.weight";
  names.delta_rates = {};
  names.delta_beta = "model.layers.{layer}.linear_attn.in_proj_b.weight";
  names.delta_decay = "model.layers.{layer}.linear_attn.in_proj_a.weight";
  return names;
}

}  // namespace

ModelFamily qwen3_next_family() {
  return {.architecture = "Qwen3NextForCausalLM",
          .model_type = "qwen3_next",
          .names = with_draft_beside(next_names()),
          .predictors = 1,
          .read = read_next,
          .write = write_next};
}

ModelFamily qwen3_5_moe_family() {
  TensorNames inside = with_draft_beside(text_names());
  inside.inside = "language_model.";
  return {.architecture = "Qwen3_5MoeForConditionalGeneration",
          .model_type = "qwen3_5_moe",
          .config_class = "qwen3_5_moe_text",
          .text_fields = "text_config",
          .names = inside,
          .predictors_field = kPredictors,
          .read = read_both,
          .write = write_with_pictures};
}

ModelFamily qwen3_5_moe_text_family() {
  return {.architecture = "Qwen3_5MoeForCausalLM",
          .model_type = "qwen3_5_moe_text",
          .names = with_draft_beside(text_names()),
          .predictors_field = kPredictors,
          .read = read_both,
          .write = write_text};
}

}  // namespace ferry
