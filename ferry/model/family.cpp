#include "ferry/model/family.h"

#include <algorithm>
#include <array>

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
    .shared_gate = "model.layers.{layer}.mlp.shared_expert.gate_proj.weight",
    .shared_up = "model.layers.{layer}.mlp.shared_expert.up_proj.weight",
    .shared_down = "model.layers.{layer}.mlp.shared_expert.down_proj.weight",
    .shared_scale = "model.layers.{layer}.mlp.shared_expert_gate.weight",
};

std::span<const ModelFamily> model_families() {
  static const std::array families = {deepseek_v2_family(),
                                      deepseek_v3_family(),
                                      glm4_moe_family(),
                                      gpt_oss_family(),
                                      kimi_k2_family(),
                                      llama4_family(),
                                      llama4_text_family(),
                                      mixtral_family(),
                                      olmoe_family(),
                                      qwen2_moe_family(),
                                      qwen3_moe_family()};
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
  const auto fill = [&](std::string_view key, int number) {
    const auto at = name.find(key);
    if (at != std::string::npos) name.replace(at, key.size(), std::to_string(number));
  };
  fill("{layer}", layer);
  fill("{expert}", expert);
  return name;
}

std::int64_t TensorSpec::elements() const {
  std::int64_t n = 1;
  for (const std::int64_t d : shape) n *= d;
  return n;
}

namespace {

/// Hands out the tensors of one model; remembers the layer so that each line names only a pattern.
class Visitor {
 public:
  Visitor(const ModelConfig& config, const std::function<void(const TensorSpec&)>& visit)
      : config_(config), names_(family_of(config).names), visit_(visit) {}

  void model() {
    const std::int64_t vocab = config_.vocab;
    add(names_.embedding, {vocab, hidden()}, TensorRole::embedding);
    for (layer_ = 0; layer_ < config_.layers; ++layer_) {
      attention();
      add(names_.ffn_norm, {hidden()}, TensorRole::norm);
      if (config_.sparse(layer_)) {
        sparse();
      } else {
        ffn(names_.dense_gate, names_.dense_up, names_.dense_down, config_.dense_inter);
      }
    }
    layer_ = -1;
    add(names_.final_norm, {hidden()}, TensorRole::norm);
    if (!config_.tied_embeddings) add(names_.lm_head, {vocab, hidden()}, TensorRole::embedding);
  }

 private:
  std::int64_t hidden() const { return config_.hidden; }

  void add(std::string_view pattern, std::vector<std::int64_t> shape, TensorRole role) {
    visit_(
        {tensor_name(names_, pattern, layer_, expert_), std::move(shape), role, layer_, expert_});
  }

  void attention() {
    add(names_.attention_norm, {hidden()}, TensorRole::norm);
    if (config_.latent.rank > 0) {
      latent_attention();
    } else {
      head_attention();
    }
  }

  void latent_attention() {
    const LatentConfig& latent = config_.latent;
    const std::int64_t heads = config_.heads;
    if (latent.query_rank > 0) {
      add(names_.query_down, {latent.query_rank, hidden()}, TensorRole::matrix);
      add(names_.query_down_norm, {latent.query_rank}, TensorRole::norm);
      add(names_.query_up, {heads * config_.head_dim, latent.query_rank}, TensorRole::matrix);
    } else {
      add(names_.q_weight, {heads * config_.head_dim, hidden()}, TensorRole::matrix);
    }
    add(names_.latent_down, {latent.rank + config_.rope.dim, hidden()}, TensorRole::matrix);
    add(names_.latent_norm, {latent.rank}, TensorRole::norm);
    add(names_.latent_up,
        {heads * (latent.plain_dim + latent.value_dim), latent.rank},
        TensorRole::matrix);
    add(names_.o_weight, {hidden(), heads * latent.value_dim}, TensorRole::matrix);
  }

  void head_attention() {
    const std::int64_t q = static_cast<std::int64_t>(config_.heads) * config_.head_dim;
    const std::int64_t kv = static_cast<std::int64_t>(config_.kv_heads) * config_.head_dim;
    add(names_.q_weight, {q, hidden()}, TensorRole::matrix);
    add(names_.k_weight, {kv, hidden()}, TensorRole::matrix);
    add(names_.v_weight, {kv, hidden()}, TensorRole::matrix);
    add(names_.o_weight, {hidden(), q}, TensorRole::matrix);
    if (config_.attention_bias) {
      add(names_.q_bias, {q}, TensorRole::bias);
      add(names_.k_bias, {kv}, TensorRole::bias);
      add(names_.v_bias, {kv}, TensorRole::bias);
    }
    if (config_.output_bias) add(names_.o_bias, {hidden()}, TensorRole::bias);
    if (config_.sinks) add(names_.sinks, {config_.heads}, TensorRole::bias);
    if (config_.qk_norm_weights()) {
      const bool whole = config_.qk_norm == QkNorm::whole;
      add(names_.q_norm, {whole ? q : config_.head_dim}, TensorRole::norm);
      add(names_.k_norm, {whole ? kv : config_.head_dim}, TensorRole::norm);
    }
  }

  void ffn(std::string_view gate, std::string_view up, std::string_view down, std::int64_t inter) {
    const TensorRole role = expert_ >= 0 ? TensorRole::expert : TensorRole::matrix;
    add(gate, {inter, hidden()}, role);
    add(up, {inter, hidden()}, role);
    add(down, {hidden(), inter}, role);
  }

  void experts() {
    const MoeConfig& moe = config_.moe;
    if (moe.stacked()) {
      add(names_.stacked_gate_up, {moe.experts, hidden(), 2 * moe.inter}, TensorRole::expert);
      add(names_.stacked_down, {moe.experts, moe.inter, hidden()}, TensorRole::expert);
      if (!moe.expert_bias) return;
      add(names_.stacked_gate_up_bias, {moe.experts, 2 * moe.inter}, TensorRole::bias);
      add(names_.stacked_down_bias, {moe.experts, hidden()}, TensorRole::bias);
      return;
    }
    for (expert_ = 0; expert_ < moe.experts; ++expert_) {
      ffn(names_.expert_gate, names_.expert_up, names_.expert_down, moe.inter);
      if (!moe.expert_bias) continue;
      add(names_.expert_gate_bias, {moe.inter}, TensorRole::bias);
      add(names_.expert_up_bias, {moe.inter}, TensorRole::bias);
      add(names_.expert_down_bias, {hidden()}, TensorRole::bias);
    }
    expert_ = -1;
  }

  void sparse() {
    const MoeConfig& moe = config_.moe;
    add(names_.router, {moe.experts, hidden()}, TensorRole::router);
    if (moe.router_bias) add(names_.router_bias, {moe.experts}, TensorRole::bias);
    if (moe.selection_bias) add(names_.selection_bias, {moe.experts}, TensorRole::bias);
    experts();
    if (moe.shared_inter > 0) {
      ffn(names_.shared_gate, names_.shared_up, names_.shared_down, moe.shared_inter);
    }
    if (moe.shared_gate) add(names_.shared_scale, {1, hidden()}, TensorRole::matrix);
  }

  const ModelConfig& config_;
  const TensorNames& names_;
  const std::function<void(const TensorSpec&)>& visit_;
  int layer_ = -1;
  int expert_ = -1;
};

}  // namespace

void for_each_tensor(const ModelConfig& config,
                     const std::function<void(const TensorSpec&)>& visit) {
  Visitor(config, visit).model();
}

}  // namespace ferry
