// GLM-4.7-Flash: DeepSeek-V3's graph, whose dense layers may be named one by one.
#include <nlohmann/json.hpp>

#include "ferry/model/families/deepseek.h"
#include "ferry/model/families/families.h"
#include "ferry/model/family_fields.h"

namespace ferry {

namespace {

void read_fields(const ConfigReader& in, ModelConfig& config) {
  if (!in.states("first_k_dense_replace")) config.layer_kinds.front() = LayerKind::dense;
  read_deepseek_v3(in, config);
  read_mlp_layer_types(in, config);
}

void write_fields(const ModelConfig& config, nlohmann::json& fields) {
  write_deepseek(config, /*query_rank=*/true, fields);
  fields["n_group"] = 1;
  fields["topk_group"] = 1;
  fields["norm_topk_prob"] = true;
  fields["routed_scaling_factor"] = 1.8;
  fields["num_nextn_predict_layers"] = config.predictors;
}

}  // namespace

ModelFamily glm4_moe_lite_family() {
  return {.architecture = "Glm4MoeLiteForCausalLM",
          .model_type = "glm4_moe_lite",
          .latent = true,
          .names = with_draft_names(deepseek_names()),
          .read = read_fields,
          .write = write_fields};
}

}  // namespace ferry
