// LFM2-8B-A1B and its kin: short convolutions in most layers, attention with norms of each head of
// queries and keys in the others; sigmoid of each expert and a bias for the choice alone; dense
// first layers.
#include <fmt/core.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "ferry/model/families/families.h"
#include "ferry/model/family_fields.h"

namespace ferry {

namespace {

using nlohmann::json;

constexpr int kMostTaps = 64;

void read_mixers(const ConfigReader& in, ModelConfig& config) {
  constexpr const char* kKey = "layer_types";
  const json types = in.has(kKey) ? in.value(kKey) : json();
  const bool whole = types.is_array() && types.size() == config.layer_attention.size();
  bool any = false;
  for (std::size_t i = 0; i < config.layer_attention.size(); ++i) {
    if (!whole || (types[i] != "conv" && types[i] != "full_attention")) {
      in.refuse(kKey,
                fmt::format("\"conv\" or \"full_attention\" for each of {} layers", config.layers));
    }
    if (types[i] == "conv") config.layer_attention[i].mixer = kShortConv;
    any = any || types[i] != "conv";
  }
  if (!any)
    in.refuse(kKey, "at least one layer with \"full_attention\" (others are not supported)");
}

void read_fields(const ConfigReader& in, ModelConfig& config) {
  read_mixers(in, config);
  config.conv_taps = in.size("conv_L_cache", kMostTaps);
  if (in.flag_or("conv_bias", false))
    in.refuse("conv_bias", "false (biases are not supported here)");
  // Published files have it by another name.
  if (in.states("tie_embedding")) config.tied_embeddings = in.flag_or("tie_embedding", true);
  config.qk_norm = QkNorm::head;
  const auto dense = in.integers("num_dense_layers", 0, config.layers);
  for (int i = 0; !dense.empty() && i < dense.front(); ++i)
    config.layer_kinds[static_cast<std::size_t>(i)] = LayerKind::dense;
  if (config.sparse_layers() < config.layers)
    config.dense_inter = in.size("intermediate_size", kMaxWidth);
  read_experts(in, {}, config);
  config.moe.router.score = RouterOptions::Score::sigmoid;
  config.moe.router.renormalize = in.flag_or("norm_topk_prob", true);
  config.moe.router.scaling = static_cast<float>(in.positive_or("routed_scaling_factor", 1.0));
  config.moe.selection_bias = in.flag_or("use_expert_bias", true);
}

void write_fields(const ModelConfig& config, json& fields) {
  write_experts(config, {}, fields);
  fields["norm_eps"] = fields["rms_norm_eps"];
  fields.erase("rms_norm_eps");
  fields["conv_L_cache"] = 3;
  fields["conv_bias"] = false;
  fields["num_dense_layers"] = std::min(2, config.layers - 1);
  fields["use_expert_bias"] = true;
  fields["norm_topk_prob"] = true;
  json& types = fields["layer_types"] = json::array();
  for (int i = 0; i < config.layers; ++i) {
    const bool attends = i % 4 == 2 || i + 1 == config.layers;
    types.push_back(attends ? "full_attention" : "conv");
  }
}

TensorNames names() {
  TensorNames names = kQwenTensorNames;
  names.final_norm = "model.embedding_norm.weight";
  names.attention_norm = "model.layers.{layer}.operator_norm.weight";
  names.ffn_norm = "model.layers.{layer}.ffn_norm.weight";
  names.o_weight = "model.layers.{layer}.self_attn.out_proj.weight";
  names.q_norm = "model.layers.{layer}.self_attn.q_layernorm.weight";
  names.k_norm = "model.layers.{layer}.self_attn.k_layernorm.weight";
  names.conv_in = "model.layers.{layer}.conv.in_proj.weight";
  names.conv_taps = "model.layers.{layer}.conv.conv.weight";
  names.conv_out = "model.layers.{layer}.conv.out_proj.weight";
  names.dense_gate = "model.layers.{layer}.feed_forward.w1.weight";
  names.dense_up = "model.layers.{layer}.feed_forward.w3.weight";
  names.dense_down = "model.layers.{layer}.feed_forward.w2.weight";
  names.router = "model.layers.{layer}.feed_forward.gate.weight";
  names.selection_bias = "model.layers.{layer}.feed_forward.expert_bias";
  names.expert_gate = "model.layers.{layer}.feed_forward.experts.{expert}.w1.weight";
  names.expert_up = "model.layers.{layer}.feed_forward.experts.{expert}.w3.weight";
  names.expert_down = "model.layers.{layer}.feed_forward.experts.{expert}.w2.weight";
  names.stacked_gate_up = "model.layers.{layer}.feed_forward.experts.gate_up_proj";
  names.stacked_down = "model.layers.{layer}.feed_forward.experts.down_proj";
  return names;
}

}  // namespace

ModelFamily lfm2_moe_family() {
  return {.architecture = "Lfm2MoeForCausalLM",
          .model_type = "lfm2_moe",
          .eps_field = "norm_eps",
          .names = names(),
          .read = read_fields,
          .write = write_fields};
}

}  // namespace ferry
