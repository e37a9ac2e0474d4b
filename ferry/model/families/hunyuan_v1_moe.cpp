// Hunyuan-A13B: RMS norm over each head of q and k behind the rotation, softmax, and a shared
// expert as wide as the others, without a gate.
#include <fmt/core.h>

#include <nlohmann/json.hpp>

#include "ferry/model/families/families.h"
#include "ferry/model/family_fields.h"

namespace ferry {

namespace {

constexpr ExpertFields kExperts{.inter = "intermediate_size", .topk = "moe_topk"};

/// What published files say of themselves beside the fields of transformers' class, where there is
/// but one meaning.
void check_published_fields(const ConfigReader& in, const ModelConfig& config) {
  if (in.has("moe_intermediate_size") &&
      size_of_all_layers(in, "moe_intermediate_size", kMaxWidth) != config.moe.inter) {
    in.refuse("moe_intermediate_size",
              fmt::format("as intermediate_size, {}, for every layer", config.moe.inter));
  }
  if (in.has("num_shared_expert") && size_of_all_layers(in, "num_shared_expert", kMaxWidth) != 1)
    in.refuse("num_shared_expert", "1 for every layer");
  for (const std::int32_t skipped : in.integers("moe_layer_num_skipped", 0, kMaxWidth))
    if (skipped != 0) in.refuse("moe_layer_num_skipped", "0");
  for (const char* key : {"use_cla", "mlp_bias"})
    if (in.flag_or(key, false)) in.refuse(key, "false");
  for (const char* key : {"use_qk_norm", "use_mixed_mlp_moe"})
    if (!in.flag_or(key, true)) in.refuse(key, "true");
}

void read_fields(const ConfigReader& in, ModelConfig& config) {
  require_full_attention(in);
  config.attention_bias = in.flag_or("attention_bias", false);
  config.output_bias = config.attention_bias;
  config.qk_norm = QkNorm::turned_head;
  read_experts(in, kExperts, config);
  config.moe.router.renormalize = true;
  config.moe.shared_inter = config.moe.inter;
  check_published_fields(in, config);
}

void write_fields(const ModelConfig& config, nlohmann::json& fields) {
  write_experts(config, kExperts, fields);
  fields["attention_bias"] = false;
  fields["use_qk_norm"] = true;
  fields["rope_scaling"] = {{"type", "dynamic"}, {"alpha", 1000.0}, {"factor", 1.0}};
}

TensorNames names() {
  TensorNames names = kQwenTensorNames;
  names.q_norm = "model.layers.{layer}.self_attn.query_layernorm.weight";
  names.k_norm = "model.layers.{layer}.self_attn.key_layernorm.weight";
  names.router = "model.layers.{layer}.mlp.gate.wg.weight";
  names.shared_gate = "model.layers.{layer}.mlp.shared_mlp.gate_proj.weight";
  names.shared_up = "model.layers.{layer}.mlp.shared_mlp.up_proj.weight";
  names.shared_down = "model.layers.{layer}.mlp.shared_mlp.down_proj.weight";
  return names;
}

}  // namespace

ModelFamily hunyuan_v1_moe_family() {
  return {.architecture = "HunYuanMoEV1ForCausalLM",
          .model_type = "hunyuan_v1_moe",
          .names = names(),
          .read = read_fields,
          .write = write_fields};
}

}  // namespace ferry
