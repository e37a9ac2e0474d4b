// DeepSeek-V3 and -R1: sigmoid of each expert, a bias for the choice alone, groups by their two
// best experts, renormalised weights times 2.5; published as fp8.
#include <nlohmann/json.hpp>

#include "ferry/model/families/deepseek.h"
#include "ferry/model/families/families.h"

namespace ferry {

namespace {

void write_fields(const ModelConfig& config, nlohmann::json& fields) {
  write_deepseek(config, /*query_rank=*/true, fields);
  write_groups(config, fields);
  fields["topk_method"] = "noaux_tc";
  fields["scoring_func"] = "sigmoid";
  fields["norm_topk_prob"] = true;
  fields["routed_scaling_factor"] = 2.5;
  fields["num_nextn_predict_layers"] = config.predictors;
}

}  // namespace

ModelFamily deepseek_v3_family() {
  return {.architecture = "DeepseekV3ForCausalLM",
          .model_type = "deepseek_v3",
          .latent = true,
          .names = with_draft_names(deepseek_names()),
          .read = read_deepseek_v3,
          .write = write_fields};
}

}  // namespace ferry
