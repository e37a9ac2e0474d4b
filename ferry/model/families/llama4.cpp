// Llama 4 (Scout, Maverick): the text model, alone or inside a checkpoint that sees pictures too.
// The router's weight goes onto what an expert reads; dense layers among sparse ones; layers that
// turn and see blocks of positions beside layers that do neither.
#include <fmt/core.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "ferry/model/families/families.h"
#include "ferry/model/family_fields.h"

namespace ferry {

namespace {

using nlohmann::json;

constexpr ExpertFields kExperts{.experts = "num_local_experts", .inter = "intermediate_size"};
constexpr int kChunk = 8192;  // of attention, and of the growth of queries
constexpr int kNoRopeInterval = 4;

/// Those in moe_layers, or every interleave_moe_layer_step-th.
void read_layer_kinds(const ConfigReader& in, ModelConfig& config) {
  const auto listed = in.integers("moe_layers", 0, config.layers - 1);
  const int step = in.size_or("interleave_moe_layer_step", kMaxWidth, 1);
  for (int i = 0; i < config.layers; ++i) {
    const bool sparse =
        in.has("moe_layers") ? std::ranges::find(listed, i) != listed.end() : (i + 1) % step == 0;
    config.layer_kinds[static_cast<std::size_t>(i)] = sparse ? LayerKind::sparse : LayerKind::dense;
  }
  if (config.sparse_layers() < config.layers)
    config.dense_inter = in.size("intermediate_size_mlp", kMaxWidth);
}

/// no_rope_layers says 1 of the layers that do turn.
void read_turning(const ConfigReader& in, ModelConfig& config) {
  const auto listed = in.integers("no_rope_layers", 0, 1);
  const int interval = in.size_or("no_rope_layer_interval", kMaxWidth, kNoRopeInterval);
  if (!listed.empty() && std::ssize(listed) != config.layers)
    in.refuse("no_rope_layers", fmt::format("a number for each of {} layers", config.layers));
  for (int i = 0; i < config.layers; ++i) {
    const auto layer = static_cast<std::size_t>(i);
    config.layer_attention[layer].rope =
        listed.empty() ? (i + 1) % interval != 0 : listed[layer] == 1;
  }
}

/// Layers see their own block of positions where layer_types says so, or else where they turn.
void read_spans(const ConfigReader& in, ModelConfig& config) {
  const AttentionSpan block{AttentionSpan::Kind::block,
                            in.size_or("attention_chunk_size", kMaxWidth, kChunk)};
  if (read_layer_types(in, "chunked_attention", block, config)) return;
  for (LayerAttention& layer : config.layer_attention)
    if (layer.rope) layer.span = block;
}

/// A flag; older files have a number, of which only 0 is false.
bool read_tuning(const ConfigReader& in) {
  constexpr const char* kKey = "attn_temperature_tuning";
  if (in.has(kKey) && in.value(kKey).is_number())
    return in.integers(kKey, 0, kMaxWidth).front() != 0;
  return in.flag_or(kKey, true);
}

void read_attention(const ConfigReader& in, ModelConfig& config) {
  config.attention_bias = in.flag_or("attention_bias", false);
  config.output_bias = config.attention_bias;
  config.rope.interleaved = true;
  if (in.flag_or("use_qk_norm", true)) config.qk_norm = QkNorm::turned;
  read_turning(in, config);
  read_spans(in, config);
  const QueryGrowth growth{in.size_or("floor_scale", kMaxWidth, kChunk),
                           in.from_zero_or("attn_scale", 0.1)};
  if (!read_tuning(in)) return;
  for (LayerAttention& layer : config.layer_attention)
    if (!layer.rope) layer.growth = growth;
}

void read_fields(const ConfigReader& in, ModelConfig& config) {
  read_layer_kinds(in, config);
  read_attention(in, config);
  read_experts(in, kExperts, config);
  MoeConfig& moe = config.moe;
  moe.router.score = RouterOptions::Score::sigmoid;
  moe.router.choose_first = true;
  moe.weigh_rows = true;
  moe.shared_inter = moe.inter;
  // Quantised matrices have scales of their own, so they lie apart.
  if (config.stored_format == nullptr) moe.storage = ExpertStorage::halves;
}

void write_text(const ModelConfig& config, json& fields) {
  write_experts(config, kExperts, fields);
  fields["intermediate_size_mlp"] = 2 * config.dense_inter;
  fields["interleave_moe_layer_step"] = config.layers > 1 ? 2 : 1;
  fields["rms_norm_eps"] = 1e-5;
  fields["rope_theta"] = 500000.0;
  fields["rope_scaling"] = {{"rope_type", "llama3"},
                            {"factor", 16.0},
                            {"low_freq_factor", 1.0},
                            {"high_freq_factor", 1.0},
                            {"original_max_position_embeddings", 8192}};
  fields["use_qk_norm"] = true;
  fields["attention_bias"] = false;
  fields["attention_chunk_size"] = kChunk;
  fields["attn_temperature_tuning"] = true;
  fields["floor_scale"] = kChunk;
  fields["attn_scale"] = 0.1;
  json& turning = fields["no_rope_layers"] = json::array();
  for (int i = 0; i < config.layers; ++i) turning.push_back((i + 1) % kNoRopeInterval != 0 ? 1 : 0);
}

void write_with_pictures(const ModelConfig& config, json& fields) {
  write_text(config, fields);
  write_text_part("llama4_text", fields);
}

TensorNames names() {
  TensorNames names = kQwenTensorNames;
  names.dense_gate = "model.layers.{layer}.feed_forward.gate_proj.weight";
  names.dense_up = "model.layers.{layer}.feed_forward.up_proj.weight";
  names.dense_down = "model.layers.{layer}.feed_forward.down_proj.weight";
  names.router = "model.layers.{layer}.feed_forward.router.weight";
  names.expert_gate = "model.layers.{layer}.feed_forward.experts.{expert}.gate_proj.weight";
  names.expert_up = "model.layers.{layer}.feed_forward.experts.{expert}.up_proj.weight";
  names.expert_down = "model.layers.{layer}.feed_forward.experts.{expert}.down_proj.weight";
  names.stacked_gate_up = "model.layers.{layer}.feed_forward.experts.gate_up_proj";
  names.stacked_down = "model.layers.{layer}.feed_forward.experts.down_proj";
  names.shared_gate = "model.layers.{layer}.feed_forward.shared_expert.gate_proj.weight";
  names.shared_up = "model.layers.{layer}.feed_forward.shared_expert.up_proj.weight";
  names.shared_down = "model.layers.{layer}.feed_forward.shared_expert.down_proj.weight";
  return names;
}

}  // namespace

ModelFamily llama4_family() {
  TensorNames inside = names();
  inside.prefix = "language_model.";
  return {.architecture = "Llama4ForConditionalGeneration",
          .model_type = "llama4",
          .config_class = "llama4_text",
          .text_fields = "text_config",
          .names = inside,
          .read = read_fields,
          .write = write_with_pictures};
}

ModelFamily llama4_text_family() {
  return {.architecture = "Llama4ForCausalLM",
          .model_type = "llama4_text",
          .names = names(),
          .read = read_fields,
          .write = write_text};
}

}  // namespace ferry
