// Mistral-Small-4 (its text model alone): DeepSeek's latent attention with queries that grow with
// their position, softmax over all experts, groups by their two best.
#include <fmt/core.h>

#include <nlohmann/json.hpp>

#include "ferry/model/families/deepseek.h"
#include "ferry/model/families/families.h"

namespace ferry {

namespace {

/// By llama_4_scaling_beta * ln(1 + how often the original positions lie behind a query).
void read_growth(const ConfigReader& in, ModelConfig& config) {
  constexpr const char* kNew = "rope_parameters";
  constexpr const char* kOld = "rope_scaling";
  const char* stated = in.states(kNew) ? kNew : in.states(kOld) ? kOld : nullptr;
  const std::optional<ConfigReader> rope =
      stated != nullptr ? in.object(stated) : in.default_object(kNew);
  if (!rope || !rope->has("llama_4_scaling_beta"))
    in.refuse(kNew, "an object with llama_4_scaling_beta");
  const int step = rope->size("original_max_position_embeddings", kMaxWidth);
  const double strength = rope->from_zero_or("llama_4_scaling_beta", 0);
  for (LayerAttention& layer : config.layer_attention)
    layer.growth = {.step = step, .strength = strength, .counts_itself = false};
}

void read_fields(const ConfigReader& in, ModelConfig& config) {
  read_latent_attention(in, config, /*head_share=*/true);
  read_growth(in, config);
  read_deepseek_experts(in, config);
  if (in.text_or("scoring_func", "softmax") != "softmax") in.refuse("scoring_func", "\"softmax\"");
  score_groups_by_two(in, config.moe.router);
  config.moe.storage = ExpertStorage::rows;
}

void write_fields(const ModelConfig& config, nlohmann::json& fields) {
  write_deepseek(config, /*query_rank=*/true, fields);
  fields["n_group"] = 1;
  fields["topk_group"] = 1;
  fields["norm_topk_prob"] = true;
  fields["routed_scaling_factor"] = 1.0;
  fields["rope_parameters"] = {{"rope_type", "yarn"},
                               {"rope_theta", 10000.0},
                               {"factor", 128.0},
                               {"original_max_position_embeddings", 8192},
                               {"beta_fast", 32.0},
                               {"beta_slow", 1.0},
                               {"mscale", 1.0},
                               {"mscale_all_dim", 1.0},
                               {"llama_4_scaling_beta", 0.1}};
}

}  // namespace

ModelFamily mistral4_family() {
  return {.architecture = "Mistral4ForCausalLM",
          .model_type = "mistral4",
          .latent = true,
          .names = deepseek_names(),
          .read = read_fields,
          .write = write_fields};
}

}  // namespace ferry
