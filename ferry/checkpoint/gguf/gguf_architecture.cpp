#include "ferry/checkpoint/gguf/gguf_architecture.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "ferry/checkpoint/gguf/gguf_families.h"
#include "ferry/checkpoint/json_file.h"
#include "ferry/core/error.h"

namespace ferry {

using nlohmann::json;

namespace {

/// As the families of the Qwen lineage have them, and most others.
constexpr std::array kUsualNames = {
    GgufName{"token_embd.weight", "model.embed_tokens.weight"},
    GgufName{"output_norm.weight", "model.norm.weight"},
    GgufName{"output.weight", "lm_head.weight"},
    GgufName{"attn_norm.weight", "model.layers.{layer}.input_layernorm.weight"},
    GgufName{"ffn_norm.weight", "model.layers.{layer}.post_attention_layernorm.weight"},
    GgufName{"post_attention_norm.weight", "model.layers.{layer}.post_attention_layernorm.weight"},
    GgufName{"attn_q.weight", "model.layers.{layer}.self_attn.q_proj.weight"},
    GgufName{"attn_k.weight", "model.layers.{layer}.self_attn.k_proj.weight"},
    GgufName{"attn_v.weight", "model.layers.{layer}.self_attn.v_proj.weight"},
    GgufName{"attn_output.weight", "model.layers.{layer}.self_attn.o_proj.weight"},
    GgufName{"attn_q.bias", "model.layers.{layer}.self_attn.q_proj.bias"},
    GgufName{"attn_k.bias", "model.layers.{layer}.self_attn.k_proj.bias"},
    GgufName{"attn_v.bias", "model.layers.{layer}.self_attn.v_proj.bias"},
    GgufName{"attn_output.bias", "model.layers.{layer}.self_attn.o_proj.bias"},
    GgufName{"attn_q_norm.weight", "model.layers.{layer}.self_attn.q_norm.weight"},
    GgufName{"attn_k_norm.weight", "model.layers.{layer}.self_attn.k_norm.weight"},
    GgufName{"ffn_gate.weight", "model.layers.{layer}.mlp.gate_proj.weight"},
    GgufName{"ffn_up.weight", "model.layers.{layer}.mlp.up_proj.weight"},
    GgufName{"ffn_down.weight", "model.layers.{layer}.mlp.down_proj.weight"},
    GgufName{"ffn_gate_inp.weight", "model.layers.{layer}.mlp.gate.weight"},
    GgufName{"ffn_gate_exps.weight",
             "model.layers.{layer}.mlp.experts.{expert}.gate_proj.weight",
             GgufForm::of_experts},
    GgufName{"ffn_up_exps.weight",
             "model.layers.{layer}.mlp.experts.{expert}.up_proj.weight",
             GgufForm::of_experts},
    GgufName{"ffn_gate_up_exps.weight",
             "model.layers.{layer}.mlp.experts.{expert}.{half}_proj.weight",
             GgufForm::of_gates_and_ups},
    GgufName{"ffn_down_exps.weight",
             "model.layers.{layer}.mlp.experts.{expert}.down_proj.weight",
             GgufForm::of_experts},
};

constexpr std::string_view kFirst = "tokenizer.ggml.";

/// Tokens that end an answer, each where the file names one.
json ends(const GgufFields& fields) {
  json ids = json::array();
  for (const char* name : {"eos_token_id", "eot_token_id", "eom_token_id"}) {
    const std::string key = fmt::format("{}{}", kFirst, name);
    if (!fields.has(key)) continue;
    const std::int64_t id = fields.size(key);
    if (std::ranges::find(ids, json(id)) == ids.end()) ids.push_back(id);
  }
  return ids;
}

void describe_yarn(const GgufFields& in, json& scaling) {
  scaling["type"] = "yarn";
  scaling["factor"] = in.number(".rope.scaling.factor");
  scaling["original_max_position_embeddings"] = in.size(".rope.scaling.original_context_length");
  scaling["beta_fast"] = in.number_or(".rope.scaling.yarn_beta_fast", 32);
  scaling["beta_slow"] = in.number_or(".rope.scaling.yarn_beta_slow", 1);
  if (in.has(".rope.scaling.yarn_attn_factor"))
    scaling["attention_factor"] = in.number(".rope.scaling.yarn_attn_factor");
}

void describe_rope(const GgufFields& in, json& config) {
  config["rope_theta"] = in.number_or(".rope.freq_base", 10000);
  config["rope_scaling"] = nullptr;
  if (in.has(".rope.scale_linear")) in.refuse(".rope.scale_linear", "none (.rope.scaling instead)");
  const std::string_view type = in.text_if(".rope.scaling.type").value_or("none");
  if (type == "none") return;
  json& scaling = config["rope_scaling"] = json::object();
  if (type == "yarn") return describe_yarn(in, scaling);
  if (type != "linear") in.refuse(".rope.scaling.type", "none, linear or yarn");
  scaling["type"] = "linear";
  scaling["factor"] = in.number(".rope.scaling.factor");
}

/// What all architectures say alike.
json usual_config(const GgufModel& model) {
  const GgufFields& in = model.fields;
  json config;
  config["hidden_size"] = in.size(".embedding_length");
  config["num_hidden_layers"] = model.layers;
  config["vocab_size"] = model.vocab;
  config["max_position_embeddings"] = in.size(".context_length");
  config["num_attention_heads"] = in.size(".attention.head_count");
  config["num_key_value_heads"] =
      in.size_or(".attention.head_count_kv", in.size(".attention.head_count"));
  if (in.has(".attention.key_length")) config["head_dim"] = in.size(".attention.key_length");
  config["rms_norm_eps"] = in.number(".attention.layer_norm_rms_epsilon");
  if (in.has(".feed_forward_length")) config["intermediate_size"] = in.size(".feed_forward_length");
  config["num_experts_per_tok"] = in.size(".expert_used_count");
  config["tie_word_embeddings"] = !model.has("output.weight");
  config["torch_dtype"] = model.dtype;
  config["eos_token_id"] = ends(in);
  config["quantization_config"] = {{"quant_method", "gguf"}, {"blocks", model.blocks}};
  describe_rope(in, config);
  return config;
}

}  // namespace

const GgufArchitecture& gguf_architecture(const GgufFields& fields) {
  std::string known;
  for (const GgufArchitecture& architecture : gguf_architectures()) {
    if (architecture.name == fields.architecture()) return architecture;
    known += fmt::format("{}{}", known.empty() ? "" : ", ", architecture.name);
  }
  fields.refuse("general.architecture", "one of " + known);
}

std::optional<GgufName> gguf_name(const GgufArchitecture& architecture, std::string_view stored) {
  const auto own = std::ranges::find(architecture.names, stored, &GgufName::stored);
  if (own != architecture.names.end()) return *own;
  const auto usual = std::ranges::find(kUsualNames, stored, &GgufName::stored);
  if (usual != kUsualNames.end()) return *usual;
  return std::nullopt;
}

std::string gguf_config(const GgufArchitecture& architecture, const GgufModel& model) {
  json config = usual_config(model);
  architecture.describe(model, config);
  return config.dump();
}

std::string gguf_generation_config(const GgufFields& fields) {
  return json{{"eos_token_id", ends(fields)}}.dump();
}

}  // namespace ferry
