#include "ferry/model/family.h"

#include <algorithm>
#include <array>
#include <charconv>

#include "ferry/core/error.h"
#include "ferry/model/families/families.h"

namespace ferry {

const TensorNames kQwenTensorNames = {
    .embedding = "model.embed_tokens.weight",
    .final_norm = "model.norm.weight",
    .lm_head = "lm_head.weight",
    .attention_norm = "model.layers.{layer}.input_layernorm.weight",
    .ffn_norm = "model.layers.{layer}.post_attention_layernorm.weight",
    .q_weight = "model.layers.{layer}.self_attn.q_proj.weight",
    .k_weight = "model.layers.{layer}.self_attn.k_proj.weight",
    .v_weight = "model.layers.{layer}.self_attn.v_proj.weight",
    .q_bias = "model.layers.{layer}.self_attn.q_proj.bias",
    .k_bias = "model.layers.{layer}.self_attn.k_proj.bias",
    .v_bias = "model.layers.{layer}.self_attn.v_proj.bias",
    .o_weight = "model.layers.{layer}.self_attn.o_proj.weight",
    .o_bias = "model.layers.{layer}.self_attn.o_proj.bias",
    .q_norm = "model.layers.{layer}.self_attn.q_norm.weight",
    .k_norm = "model.layers.{layer}.self_attn.k_norm.weight",
    .dense_gate = "model.layers.{layer}.mlp.gate_proj.weight",
    .dense_up = "model.layers.{layer}.mlp.up_proj.weight",
    .dense_down = "model.layers.{layer}.mlp.down_proj.weight",
    .router = "model.layers.{layer}.mlp.gate.weight",
    .expert_gate = "model.layers.{layer}.mlp.experts.{expert}.gate_proj.weight",
    .expert_up = "model.layers.{layer}.mlp.experts.{expert}.up_proj.weight",
    .expert_down = "model.layers.{layer}.mlp.experts.{expert}.down_proj.weight",
    .stacked_gate_up = "model.layers.{layer}.mlp.experts.gate_up_proj",
    .stacked_down = "model.layers.{layer}.mlp.experts.down_proj",
    .shared_gate = "model.layers.{layer}.mlp.shared_expert.gate_proj.weight",
    .shared_up = "model.layers.{layer}.mlp.shared_expert.up_proj.weight",
    .shared_down = "model.layers.{layer}.mlp.shared_expert.down_proj.weight",
    .shared_scale = "model.layers.{layer}.mlp.shared_expert_gate.weight",
};

namespace {

using N = TensorNames;

/// What `inside` stands behind.
constexpr std::string_view kBody = "model.";

/// All but `prefix` and `inside`.
constexpr std::array kPatterns = {&N::embedding,
                                  &N::final_norm,
                                  &N::lm_head,
                                  &N::attention_norm,
                                  &N::ffn_norm,
                                  &N::q_weight,
                                  &N::k_weight,
                                  &N::v_weight,
                                  &N::q_bias,
                                  &N::k_bias,
                                  &N::v_bias,
                                  &N::o_weight,
                                  &N::o_bias,
                                  &N::q_norm,
                                  &N::k_norm,
                                  &N::sinks,
                                  &N::query_down,
                                  &N::query_down_norm,
                                  &N::query_up,
                                  &N::latent_down,
                                  &N::latent_norm,
                                  &N::latent_up,
                                  &N::index_query,
                                  &N::index_key,
                                  &N::index_norm,
                                  &N::index_norm_bias,
                                  &N::index_weights,
                                  &N::conv_in,
                                  &N::conv_taps,
                                  &N::conv_out,
                                  &N::delta_in,
                                  &N::delta_gate,
                                  &N::delta_rates,
                                  &N::delta_beta,
                                  &N::delta_decay,
                                  &N::delta_taps,
                                  &N::delta_log_rate,
                                  &N::delta_rate_bias,
                                  &N::delta_norm,
                                  &N::delta_out,
                                  &N::dense_gate,
                                  &N::dense_up,
                                  &N::dense_down,
                                  &N::router,
                                  &N::router_bias,
                                  &N::selection_bias,
                                  &N::expert_gate,
                                  &N::expert_up,
                                  &N::expert_down,
                                  &N::expert_gate_bias,
                                  &N::expert_up_bias,
                                  &N::expert_down_bias,
                                  &N::stacked_gate_up,
                                  &N::stacked_down,
                                  &N::stacked_gate_up_bias,
                                  &N::stacked_down_bias,
                                  &N::shared_gate,
                                  &N::shared_up,
                                  &N::shared_down,
                                  &N::shared_scale,
                                  &N::draft_embedding_norm,
                                  &N::draft_hidden_norm,
                                  &N::draft_projection,
                                  &N::draft_final_norm,
                                  &N::draft_place};
static_assert(sizeof(TensorNames) == (kPatterns.size() + 2) * sizeof(std::string_view),
              "a pattern that kPatterns does not list");

}  // namespace

std::span<const ModelFamily> model_families() {
  static const std::array families = {deepseek_v2_family(),   deepseek_v3_family(),
                                      deepseek_v32_family(),  dots1_family(),
                                      ernie4_5_moe_family(),  glm4_moe_family(),
                                      glm4_moe_lite_family(), glm_moe_dsa_family(),
                                      gpt_oss_family(),       hunyuan_v1_moe_family(),
                                      kimi_k2_family(),       kimi_k25_family(),
                                      lfm2_moe_family(),      llama4_family(),
                                      llama4_text_family(),   minimax_m2_family(),
                                      mistral4_family(),      mixtral_family(),
                                      olmoe_family(),         qwen2_moe_family(),
                                      qwen3_5_moe_family(),   qwen3_5_moe_text_family(),
                                      qwen3_moe_family(),     qwen3_next_family()};
  return families;
}

const ModelFamily* find_family(std::string_view name) {
  for (const ModelFamily& family : model_families()) {
    if (name == family.architecture || name == family.model_type) return &family;
  }
  return nullptr;
}

const ModelFamily& family_of(const ModelConfig& config) {
  const ModelFamily* family = find_family(config.model_type);
  FERRY_CHECK(family != nullptr, "model type {} is not in the table", config.model_type);
  return *family;
}

std::string tensor_name(const TensorNames& names, std::string_view pattern, int layer, int expert) {
  std::string name(names.prefix);
  name += pattern;
  if (pattern.starts_with(kBody)) name.insert(names.prefix.size() + kBody.size(), names.inside);
  const auto fill = [&](std::string_view key, int number) {
    const auto at = name.find(key);
    if (at != std::string::npos) name.replace(at, key.size(), std::to_string(number));
  };
  fill("{layer}", layer);
  fill("{expert}", expert);
  return name;
}

std::string tensor_name(const ModelConfig& config,
                        std::string_view pattern,
                        int layer,
                        int expert) {
  constexpr std::string_view kLayer = "model.layers.{layer}.";
  const TensorNames& names = family_of(config).names;
  if (layer < config.layers || names.draft_place.empty() || !pattern.starts_with(kLayer))
    return tensor_name(names, pattern, layer, expert);
  std::string there(names.draft_place);
  there += pattern.substr(kLayer.size());
  return tensor_name(names, there, layer - config.layers, expert);
}

std::optional<int> known_layer(const TensorNames& names, std::string_view name) {
  if (!name.starts_with(names.prefix)) return std::nullopt;
  name.remove_prefix(names.prefix.size());
  // The name as a pattern: a layer's number comes first, an expert's second.
  constexpr std::array<std::string_view, 2> kKeys = {"{layer}", "{expert}"};
  std::string pattern;
  if (!names.inside.empty() && name.starts_with(kBody)) {
    name.remove_prefix(kBody.size());
    if (!name.starts_with(names.inside)) return std::nullopt;
    name.remove_prefix(names.inside.size());
    pattern = kBody;
  }
  std::size_t numbers = 0;
  int layer = -1;
  while (!name.empty()) {
    const std::size_t end = std::min(name.find('.'), name.size());
    const std::string_view part = name.substr(0, end);
    int number = 0;
    const auto [last, error] = std::from_chars(part.data(), part.data() + part.size(), number);
    const bool whole = error == std::errc() && last == part.data() + part.size();
    if (whole && numbers < kKeys.size()) {
      if (numbers == 0) layer = number;
      pattern += kKeys[numbers++];
    } else {
      pattern += part;
    }
    if (end < name.size()) pattern += '.';
    name.remove_prefix(std::min(end + 1, name.size()));
  }
  const auto has = [&](const auto member) { return names.*member == pattern; };
  // A layer that predicts further tokens, where it lies beside the model, is no part of it.
  constexpr std::array kOfDraft = {
      &N::draft_embedding_norm, &N::draft_hidden_norm, &N::draft_projection, &N::draft_final_norm};
  if (layer < 0 && std::ranges::any_of(kOfDraft, has)) return std::nullopt;
  if (!std::ranges::any_of(kPatterns, has)) return std::nullopt;
  return layer;
}

std::int64_t TensorSpec::elements() const {
  std::int64_t n = 1;
  for (const std::int64_t d : shape) n *= d;
  return n;
}

}  // namespace ferry
