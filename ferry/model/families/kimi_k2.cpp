// Kimi-K2: DeepSeek-V3's graph under its architecture's name, with more experts and no groups.
// Kimi-K2.5 and -K2.6: the same inside a checkpoint that sees pictures too.
#include <nlohmann/json.hpp>

#include "ferry/model/families/deepseek.h"
#include "ferry/model/families/families.h"
#include "ferry/model/family_fields.h"

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

void write_with_pictures(const ModelConfig& config, nlohmann::json& fields) {
  write_fields(config, fields);
  write_text_part("kimi_k2", fields);
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

ModelFamily kimi_k25_family() {
  TensorNames inside = deepseek_names();
  inside.prefix = "language_model.";
  return {.architecture = "KimiK25ForConditionalGeneration",
          .model_type = "kimi_k25",
          .architecture_saved = "Kimi_K25ForConditionalGeneration",
          .config_class = "deepseek_v3",
          .latent = true,
          .text_fields = "text_config",
          .names = inside,
          .read = read_deepseek_v3,
          .write = write_with_pictures};
}

}  // namespace ferry
