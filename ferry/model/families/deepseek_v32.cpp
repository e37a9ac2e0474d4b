// DeepSeek-V3.2, and GLM-5, -5.1 and -5.2: DeepSeek-V3's graph, in which an indexer chooses the
// index_topk earlier positions that a query sees. Up to so many it chooses all, and the graph is
// V3's: that far these models run.
#include <fmt/core.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "ferry/model/families/deepseek.h"
#include "ferry/model/families/families.h"
#include "ferry/model/family_fields.h"

namespace ferry {

namespace {

void limit_positions(const ConfigReader& in, ModelConfig& config) {
  const int kept = in.size("index_topk", kMaxWidth);
  if (config.max_positions <= kept) return;
  config.notes.push_back(fmt::format(
      "positions are limited to {} of {}: as many as the indexer keeps (index_topk), which is not "
      "supported itself",
      kept,
      config.max_positions));
  config.max_positions = kept;
}

void read_fields(const ConfigReader& in, ModelConfig& config) {
  read_deepseek_v3(in, config);
  read_mlp_layer_types(in, config);
  limit_positions(in, config);
}

void write_indexer(nlohmann::json& fields) {
  fields["norm_topk_prob"] = true;
  fields["routed_scaling_factor"] = 2.5;
  fields["num_nextn_predict_layers"] = 0;
  fields["index_topk"] = 2048;
}

void write_deepseek_v32(const ModelConfig& config, nlohmann::json& fields) {
  write_deepseek(config, /*query_rank=*/true, fields);
  write_groups(config, fields);
  write_indexer(fields);
}

void write_glm(const ModelConfig& config, nlohmann::json& fields) {
  write_deepseek(config, /*query_rank=*/true, fields);
  fields["n_group"] = 1;
  fields["topk_group"] = 1;
  write_indexer(fields);
}

}  // namespace

ModelFamily deepseek_v32_family() {
  return {.architecture = "DeepseekV32ForCausalLM",
          .model_type = "deepseek_v32",
          .latent = true,
          .names = deepseek_names(),
          .read = read_fields,
          .write = write_deepseek_v32};
}

ModelFamily glm_moe_dsa_family() {
  return {.architecture = "GlmMoeDsaForCausalLM",
          .model_type = "glm_moe_dsa",
          .latent = true,
          .names = deepseek_names(),
          .read = read_fields,
          .write = write_glm};
}

}  // namespace ferry
