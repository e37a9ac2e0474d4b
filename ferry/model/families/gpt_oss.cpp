// gpt-oss (20b, 120b): heads with a sink, a window in every other layer, biases everywhere, and
// experts whose gate and up are clamped; all experts in one tensor, published as mxfp4.
#include <nlohmann/json.hpp>

#include "ferry/checkpoint/stored_format.h"
#include "ferry/model/families/families.h"
#include "ferry/model/family_fields.h"

namespace ferry {

namespace {

using nlohmann::json;

constexpr ExpertFields kExperts{.experts = "num_local_experts", .inter = "intermediate_size"};
constexpr const char* kWindowed = "sliding_attention";
constexpr int kWindow = 128;
constexpr double kAlpha = 1.702;
constexpr double kLimit = 7.0;

void read_fields(const ConfigReader& in, ModelConfig& config) {
  config.attention_bias = in.flag_or("attention_bias", true);
  config.output_bias = config.attention_bias;
  config.sinks = true;
  const AttentionSpan window{AttentionSpan::Kind::window,
                             in.size_or("sliding_window", kMaxWidth, kWindow)};
  if (!read_layer_types(in, kWindowed, window, config)) {
    for (std::size_t i = 0; i < config.layer_attention.size(); i += 2)
      config.layer_attention[i].span = window;
  }
  read_experts(in, kExperts, config);
  MoeConfig& moe = config.moe;
  moe.router.choose_first = true;
  moe.router_bias = true;
  moe.expert_bias = true;
  moe.gating = {.kind = Gating::Kind::clamped,
                .alpha = static_cast<float>(in.positive_or("swiglu_alpha", kAlpha)),
                .limit = static_cast<float>(in.positive_or("swiglu_limit", kLimit))};
  // Other codes share their scales in ways of their own, so those experts lie apart.
  if (config.stored_format == nullptr || config.stored_format->stacks_experts())
    moe.storage = ExpertStorage::alternating;
}

void write_fields(const ModelConfig& config, json& fields) {
  write_experts(config, kExperts, fields);
  fields["rms_norm_eps"] = 1e-5;
  fields["rope_theta"] = 150000.0;
  fields["rope_scaling"] = {{"rope_type", "yarn"},
                            {"factor", 32.0},
                            {"beta_fast", 32.0},
                            {"beta_slow", 1.0},
                            {"truncate", false},
                            {"original_max_position_embeddings", 4096}};
  fields["attention_bias"] = true;
  fields["sliding_window"] = kWindow;
  fields["swiglu_limit"] = kLimit;
  json& types = fields["layer_types"] = json::array();
  for (int i = 0; i < config.layers; ++i)
    types.push_back(i % 2 == 0 ? kWindowed : "full_attention");
}

TensorNames names() {
  TensorNames names = kQwenTensorNames;
  names.sinks = "model.layers.{layer}.self_attn.sinks";
  names.router = "model.layers.{layer}.mlp.router.weight";
  names.router_bias = "model.layers.{layer}.mlp.router.bias";
  names.expert_gate_bias = "model.layers.{layer}.mlp.experts.{expert}.gate_proj.bias";
  names.expert_up_bias = "model.layers.{layer}.mlp.experts.{expert}.up_proj.bias";
  names.expert_down_bias = "model.layers.{layer}.mlp.experts.{expert}.down_proj.bias";
  names.stacked_gate_up = "model.layers.{layer}.mlp.experts.gate_up_proj";
  names.stacked_down = "model.layers.{layer}.mlp.experts.down_proj";
  names.stacked_gate_up_bias = "model.layers.{layer}.mlp.experts.gate_up_proj_bias";
  names.stacked_down_bias = "model.layers.{layer}.mlp.experts.down_proj_bias";
  return names;
}

}  // namespace

ModelFamily gpt_oss_family() {
  return {.architecture = "GptOssForCausalLM",
          .model_type = "gpt_oss",
          .names = names(),
          .read = read_fields,
          .write = write_fields};
}

}  // namespace ferry
