// Kimi-K2: DeepSeek-V3's graph under its architecture's name, with more experts and no groups.
#include <nlohmann/json.hpp>

#include "ferry/model/families/deepseek.h"
#include "ferry/model/families/families.h"

namespace ferry {

namespace {

void write_fields(const ModelConfig& config, nlohmann::json& fields) {
  write_deepseek(config, /*query_rank=*/true, fields);
  fields["n_group"] = 1;
  fields["topk_group"] = 1;
  fields["topk_method"] = "noaux_tc";
  fields["scoring_func"] = "sigmoid";
  fields["norm_topk_prob"] = true;
  fields["routed_scaling_factor"] = 2.827;
  fields["num_nextn_predict_layers"] = 0;
}

}  // namespace

ModelFamily kimi_k2_family() {
  return {.architecture = "DeepseekV3ForCausalLM",
          .model_type = "kimi_k2",
          .config_class = "deepseek_v3",
          .latent = true,
          .names = deepseek_names(),
          .read = read_deepseek_v3,
          .write = write_fields};
}

}  // namespace ferry
