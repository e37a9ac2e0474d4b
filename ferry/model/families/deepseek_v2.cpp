// DeepSeek-V2 and -V2-Lite: softmax over the experts; the greater one chooses among the groups with
// the best single experts. Lite's queries are not compressed.
#include <nlohmann/json.hpp>

#include "ferry/model/families/deepseek.h"
#include "ferry/model/families/families.h"

namespace ferry {

namespace {

void read_fields(const ConfigReader& in, ModelConfig& config) {
  read_deepseek(in, config);
  if (in.text_or("scoring_func", "softmax") != "softmax") in.refuse("scoring_func", "\"softmax\"");
  RouterOptions& router = config.moe.router;
  router.group_score = RouterOptions::GroupScore::max;
  const std::string method = in.text_or("topk_method", "greedy");
  if (method == "greedy") {
    router.groups = 1;
    router.topk_groups = 1;
  } else if (method != "group_limited_greedy") {
    in.refuse("topk_method", "\"greedy\" or \"group_limited_greedy\"");
  }
  // DeepSeek's own code does one or the other; transformers 5 leaves the weights as they are.
  if (router.renormalize) in.refuse("norm_topk_prob", "false, as in all published models");
}

void write_fields(const ModelConfig& config, nlohmann::json& fields) {
  write_deepseek(config, /*query_rank=*/false, fields);
  write_groups(config, fields);
  fields["topk_method"] = "group_limited_greedy";
  fields["scoring_func"] = "softmax";
  fields["norm_topk_prob"] = false;
  fields["routed_scaling_factor"] = 1.0;
}

}  // namespace

ModelFamily deepseek_v2_family() {
  return {.architecture = "DeepseekV2ForCausalLM",
          .model_type = "deepseek_v2",
          .latent = true,
          .names = deepseek_names(),
          .read = read_fields,
          .write = write_fields};
}

}  // namespace ferry
