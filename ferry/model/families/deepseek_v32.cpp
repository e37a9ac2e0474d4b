// DeepSeek-V3.2, and GLM-5, -5.1 and -5.2: DeepSeek-V3's graph, in which an indexer chooses the
// index_topk positions that a query sees. GLM's layers may share what one of them has chosen.
#include <fmt/core.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "ferry/model/families/deepseek.h"
#include "ferry/model/families/families.h"
#include "ferry/model/family_fields.h"

namespace ferry {

namespace {

constexpr int kMaxIndexTopk = 1 << 20;

TensorNames indexer_names() {
  TensorNames names = deepseek_names();
  names.index_query = "model.layers.{layer}.self_attn.indexer.wq_b.weight";
  names.index_key = "model.layers.{layer}.self_attn.indexer.wk.weight";
  names.index_norm = "model.layers.{layer}.self_attn.indexer.k_norm.weight";
  names.index_norm_bias = "model.layers.{layer}.self_attn.indexer.k_norm.bias";
  names.index_weights = "model.layers.{layer}.self_attn.indexer.weights_proj.weight";
  return names;
}

void read_fields(const ConfigReader& in, ModelConfig& config) {
  read_deepseek_v3(in, config);
  read_mlp_layer_types(in, config);
  IndexerConfig& indexer = config.latent.indexer;
  indexer.topk = in.size("index_topk", kMaxIndexTopk);
  indexer.heads = in.size("index_n_heads", kMaxWidth);
  indexer.dim = in.size("index_head_dim", Rope::kMaxDim);
  if (indexer.dim < config.rope.dim)
    in.refuse("index_head_dim", "at least the part of it that turns (qk_rope_head_dim)");
}

/// Which layer shares: by name, by letter ("FSSF"), or every index_topk_freq-th does not, from
/// layer index_skip_topk_offset - 1 on (those before it do not either).
bool shares_choice(const ConfigReader& in, const ModelConfig& config, int layer) {
  const auto at = static_cast<std::size_t>(layer);
  for (const char* key : {"indexer_types", "index_topk_pattern"}) {
    if (!in.states(key)) continue;
    const nlohmann::json& types = in.value(key);
    const auto count = static_cast<std::size_t>(config.layers);
    const bool letters = types.is_string() && std::string_view(key) == "index_topk_pattern";
    const std::string text = letters ? types.get<std::string>() : "";
    if (letters ? text.size() != count : !types.is_array() || types.size() != count)
      in.refuse(key, "one entry for each layer");
    const nlohmann::json type = letters ? nlohmann::json(std::string(1, text[at])) : types[at];
    if (type == (letters ? "S" : "shared")) return true;
    if (type != (letters ? "F" : "full")) in.refuse(key, "\"full\" or \"shared\" for each layer");
    return false;
  }
  const int step = in.size_or("index_topk_freq", kMaxWidth, 1);
  const auto offset = in.integers("index_skip_topk_offset", 0, kMaxWidth);
  return std::max(layer - (offset.empty() ? 2 : offset.front()) + 1, 0) % step != 0;
}

void read_glm(const ConfigReader& in, ModelConfig& config) {
  read_fields(in, config);
  config.latent.indexer.interleaved = true;
  for (int layer = 0; layer < config.layers; ++layer)
    config.layer_attention[static_cast<std::size_t>(layer)].shares_choice =
        shares_choice(in, config, layer);
  if (config.layer_attention.front().shares_choice)
    in.refuse(in.states("indexer_types") ? "indexer_types" : "index_topk_pattern",
              "a first layer that chooses itself (\"full\")");
}

void write_indexer(const ModelConfig& config, nlohmann::json& fields) {
  fields["norm_topk_prob"] = true;
  fields["routed_scaling_factor"] = 2.5;
  fields["num_nextn_predict_layers"] = 0;
  fields["index_topk"] = 2048;
  fields["index_head_dim"] = config.head_dim;
  fields["index_n_heads"] = std::max(1, config.heads / 2);
}

void write_deepseek_v32(const ModelConfig& config, nlohmann::json& fields) {
  write_deepseek(config, /*query_rank=*/true, fields);
  write_groups(config, fields);
  write_indexer(config, fields);
}

void write_glm(const ModelConfig& config, nlohmann::json& fields) {
  write_deepseek(config, /*query_rank=*/true, fields);
  fields["n_group"] = 1;
  fields["topk_group"] = 1;
  write_indexer(config, fields);
}

}  // namespace

ModelFamily deepseek_v32_family() {
  return {.architecture = "DeepseekV32ForCausalLM",
          .model_type = "deepseek_v32",
          .latent = true,
          .names = indexer_names(),
          .read = read_fields,
          .write = write_deepseek_v32};
}

ModelFamily glm_moe_dsa_family() {
  return {.architecture = "GlmMoeDsaForCausalLM",
          .model_type = "glm_moe_dsa",
          .latent = true,
          .names = indexer_names(),
          .read = read_glm,
          .write = write_glm};
}

}  // namespace ferry
