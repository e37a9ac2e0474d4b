// What each architecture's metadata means in the words of its family's config.json, and where its
// tensors have names of their own. What GGUF does not store is what llama.cpp takes it for, which
// is what all published models of that architecture have.
#include "ferry/checkpoint/gguf/gguf_families.h"

#include <fmt/core.h>

#include <array>
#include <nlohmann/json.hpp>

namespace ferry {

namespace {

using nlohmann::json;

void name_family(const char* architecture, const char* model_type, json& config) {
  config["architectures"] = {architecture};
  config["model_type"] = model_type;
}

/// Layers without experts, in the words of the Qwen families.
void describe_dense_layers(const GgufModel& model, json& config) {
  json dense = json::array();
  for (std::int64_t layer = 0; layer < model.layers; ++layer)
    if (!model.has(layer, "ffn_gate_exps.weight")) dense.push_back(layer);
  config["decoder_sparse_step"] = 1;
  config["mlp_only_layers"] = dense;
}

/// Heads of values as wide as those of keys, and every position seen.
void check_plain_attention(const GgufFields& in) {
  if (in.has(".attention.value_length") && in.has(".attention.key_length") &&
      in.size(".attention.value_length") != in.size(".attention.key_length"))
    in.refuse(".attention.value_length", "that of keys (others are not supported)");
  if (in.size_or(".attention.sliding_window", 0) != 0)
    in.refuse(".attention.sliding_window", "0 (windows are not supported here)");
}

void describe_qwen(const GgufModel& model, json& config) {
  const GgufFields& in = model.fields;
  check_plain_attention(in);
  describe_dense_layers(model, config);
  config["num_experts"] = in.size(".expert_count");
  config["moe_intermediate_size"] = in.size(".expert_feed_forward_length");
  config["use_sliding_window"] = false;
  config["sliding_window"] = nullptr;
}

void describe_qwen3_moe(const GgufModel& model, json& config) {
  name_family("Qwen3MoeForCausalLM", "qwen3_moe", config);
  describe_qwen(model, config);
  config["norm_topk_prob"] = true;
  config["attention_bias"] = model.anywhere("attn_q.bias");
}

void describe_qwen2_moe(const GgufModel& model, json& config) {
  name_family("Qwen2MoeForCausalLM", "qwen2_moe", config);
  describe_qwen(model, config);
  config["norm_topk_prob"] = false;
  config["qkv_bias"] = model.anywhere("attn_q.bias");
  config["shared_expert_intermediate_size"] =
      model.fields.size(".expert_shared_feed_forward_length");
}

void describe_olmoe(const GgufModel& model, json& config) {
  const GgufFields& in = model.fields;
  name_family("OlmoeForCausalLM", "olmoe", config);
  check_plain_attention(in);
  config["num_experts"] = in.size(".expert_count");
  config["norm_topk_prob"] = false;
  config["attention_bias"] = model.anywhere("attn_q.bias");
}

/// "llama" stands for many models; those with experts are Mixtral's.
void describe_mixtral(const GgufModel& model, json& config) {
  const GgufFields& in = model.fields;
  name_family("MixtralForCausalLM", "mixtral", config);
  check_plain_attention(in);
  if (in.size_or(".expert_count", 0) == 0)
    in.refuse(".expert_count", "1 at least (models without experts are not supported)");
  config["num_local_experts"] = in.size(".expert_count");
  config["sliding_window"] = nullptr;
  const std::int64_t heads = in.size(".attention.head_count");
  const std::int64_t hidden = in.size(".embedding_length");
  if (heads == 0 || heads > hidden)
    in.refuse(".attention.head_count", fmt::format("1 to {}", hidden));
  config["quantization_config"]["turned_head"] =
      in.size_or(".attention.key_length", hidden / heads);
}

/// DeepSeek-V3's experts and whoever took them over.
void describe_shared_experts(const GgufFields& in, json& config) {
  config["n_routed_experts"] = in.size(".expert_count");
  config["n_shared_experts"] = in.size_or(".expert_shared_count", 0);
  config["moe_intermediate_size"] = in.size(".expert_feed_forward_length");
  config["first_k_dense_replace"] = in.size_or(".leading_dense_block_count", 0);
  config["moe_layer_freq"] = 1;
  config["n_group"] = in.size_or(".expert_group_count", 1);
  config["topk_group"] = in.size_or(".expert_group_used_count", 1);
  config["norm_topk_prob"] = in.flag_or(".expert_weights_norm", false);
  config["routed_scaling_factor"] = in.number_or(".expert_weights_scale", 1);
}

/// Of those that a router of this kind has.
void check_gating(const GgufFields& in, std::int64_t kind) {
  if (in.size_or(".expert_gating_func", kind) != kind)
    in.refuse(".expert_gating_func", fmt::format("{} (others are not supported here)", kind));
}

constexpr std::int64_t kSoftmax = 1;
constexpr std::int64_t kSigmoid = 2;

void describe_glm4_moe(const GgufModel& model, json& config) {
  const GgufFields& in = model.fields;
  name_family("Glm4MoeForCausalLM", "glm4_moe", config);
  check_plain_attention(in);
  check_gating(in, kSigmoid);
  describe_shared_experts(in, config);
  config["attention_bias"] = model.anywhere("attn_q.bias");
  config["use_qk_norm"] = model.anywhere("attn_q_norm.weight");
  const auto head = static_cast<double>(in.size(".attention.key_length"));
  config["partial_rotary_factor"] = static_cast<double>(in.size(".rope.dimension_count")) / head;
}

void describe_dots1(const GgufModel& model, json& config) {
  const GgufFields& in = model.fields;
  name_family("Dots1ForCausalLM", "dots1", config);
  check_plain_attention(in);
  check_gating(in, kSigmoid);
  describe_shared_experts(in, config);
  config["attention_bias"] = model.anywhere("attn_q.bias");
  config["sliding_window"] = nullptr;
}

/// DeepSeek-V2 and -V3, and Kimi-K2 and GLM-4.7-Flash, which are V3: where the file does not say,
/// by the bias of the choice, which V2 has not. Keys and values lie as one head that all share,
/// or, in older files, as each head has them.
void describe_deepseek(const GgufModel& model, json& config) {
  const GgufFields& in = model.fields;
  const bool chosen = model.anywhere("exp_probs_b.bias");
  const std::int64_t kind = in.size_or(".expert_gating_func", chosen ? kSigmoid : kSoftmax);
  const bool v3 = kind == kSigmoid;
  if (!v3) check_gating(in, kSoftmax);
  name_family(v3 ? "DeepseekV3ForCausalLM" : "DeepseekV2ForCausalLM",
              v3 ? "deepseek_v3" : "deepseek_v2",
              config);
  describe_shared_experts(in, config);
  config["scoring_func"] = v3 ? "sigmoid" : "softmax";
  const bool grouped = config["n_group"] > 1;
  config["topk_method"] = v3 ? "noaux_tc" : grouped ? "group_limited_greedy" : "greedy";
  const std::int64_t turned = in.size(".rope.dimension_count");
  const bool shared = in.has(".attention.key_length_mla");
  const char* keys = shared ? ".attention.key_length_mla" : ".attention.key_length";
  if (in.size(keys) <= turned) in.refuse(keys, fmt::format("more than the {} that turn", turned));
  config.erase("head_dim");
  config["qk_rope_head_dim"] = turned;
  config["qk_nope_head_dim"] = in.size(keys) - turned;
  config["v_head_dim"] =
      in.size(shared ? ".attention.value_length_mla" : ".attention.value_length");
  config["kv_lora_rank"] = in.size(".attention.kv_lora_rank");
  config["q_lora_rank"] = nullptr;
  if (in.has(".attention.q_lora_rank")) config["q_lora_rank"] = in.size(".attention.q_lora_rank");
  json& scaling = config["rope_scaling"];
  if (!in.has(".rope.scaling.yarn_log_multiplier") || scaling.is_null()) return;
  // A tenth of it is stored; published models have both alike.
  const double stored = in.number(".rope.scaling.yarn_log_multiplier");
  scaling["mscale_all_dim"] = gguf_meant(static_cast<float>(stored * 10));
  scaling["mscale"] = scaling["mscale_all_dim"];
}

void describe_gpt_oss(const GgufModel& model, json& config) {
  const GgufFields& in = model.fields;
  name_family("GptOssForCausalLM", "gpt_oss", config);
  config["num_local_experts"] = in.size(".expert_count");
  config["intermediate_size"] = in.size(".expert_feed_forward_length");
  config["sliding_window"] = in.size(".attention.sliding_window");
  config["attention_bias"] = model.anywhere("attn_q.bias");
  json& scaling = config["rope_scaling"];
  if (scaling.is_null()) scaling = {{"type", "default"}};
  scaling["truncate"] = false;
}

void describe_ernie(const GgufModel& model, json& config) {
  const GgufFields& in = model.fields;
  name_family("Ernie4_5_MoeForCausalLM", "ernie4_5_moe", config);
  check_plain_attention(in);
  check_gating(in, kSoftmax);
  config["moe_num_experts"] = in.size(".expert_count");
  config["moe_k"] = in.size(".expert_used_count");
  config["moe_intermediate_size"] = in.size(".expert_feed_forward_length");
  config["moe_num_shared_experts"] = in.size_or(".expert_shared_count", 0);
  config["moe_layer_start_index"] = in.size_or(".leading_dense_block_count", 0);
  config["moe_layer_interval"] = in.size_or(".interleave_moe_layer_step", 1);
  config["moe_layer_end_index"] = -1;
  config["use_bias"] = model.anywhere("attn_q.bias");
}

void describe_hunyuan(const GgufModel& model, json& config) {
  const GgufFields& in = model.fields;
  name_family("HunYuanMoEV1ForCausalLM", "hunyuan_v1_moe", config);
  check_plain_attention(in);
  config["num_experts"] = in.size(".expert_count");
  config["moe_topk"] = in.size(".expert_used_count");
  config["intermediate_size"] = in.size(".expert_feed_forward_length");
  config["num_shared_expert"] = in.size_or(".expert_shared_count", 1);
  config["attention_bias"] = model.anywhere("attn_q.bias");
}

void describe_minimax(const GgufModel& model, json& config) {
  const GgufFields& in = model.fields;
  name_family("MiniMaxM2ForCausalLM", "minimax_m2", config);
  check_plain_attention(in);
  check_gating(in, kSigmoid);
  config["num_local_experts"] = in.size(".expert_count");
  config["intermediate_size"] = in.size(".expert_feed_forward_length");
  config["rotary_dim"] = in.size(".rope.dimension_count");
}

/// Of layers with a gated delta net and those between.
void describe_delta(const GgufModel& model, json& config) {
  const GgufFields& in = model.fields;
  describe_qwen(model, config);
  config["norm_topk_prob"] = true;
  config["attention_bias"] = model.anywhere("attn_q.bias");
  config["shared_expert_intermediate_size"] = in.size(".expert_shared_feed_forward_length");
  config["full_attention_interval"] = in.size_or(".full_attention_interval", 4);
  const std::int64_t value_heads = in.size(".ssm.time_step_rank");
  const std::int64_t inner = in.size(".ssm.inner_size");
  // Their products are taken.
  constexpr std::int64_t kMost = 1 << 20;
  for (const char* key : {".ssm.group_count", ".ssm.state_size", ".ssm.time_step_rank"})
    if (in.size(key) > kMost) in.refuse(key, fmt::format("at most {}", kMost));
  if (value_heads == 0 || inner % value_heads != 0)
    in.refuse(".ssm.inner_size", fmt::format("a multiple of {} heads", value_heads));
  config["linear_conv_kernel_dim"] = in.size(".ssm.conv_kernel");
  config["linear_key_head_dim"] = in.size(".ssm.state_size");
  config["linear_num_key_heads"] = in.size(".ssm.group_count");
  config["linear_num_value_heads"] = value_heads;
  config["linear_value_head_dim"] = inner / value_heads;
  const auto head = static_cast<double>(in.size(".attention.key_length"));
  config["partial_rotary_factor"] = static_cast<double>(in.size(".rope.dimension_count")) / head;
}

void describe_qwen3_next(const GgufModel& model, json& config) {
  name_family("Qwen3NextForCausalLM", "qwen3_next", config);
  describe_delta(model, config);
  config["quantization_config"]["delta"] = {{"key_heads", config["linear_num_key_heads"]},
                                            {"key_rows", config["linear_key_head_dim"]},
                                            {"value_rows", model.fields.size(".ssm.inner_size")}};
}

/// Qwen3.5 and 3.6: heads of values lie in another order than in Qwen3-Next's files.
void describe_qwen35(const GgufModel& model, json& config) {
  name_family("Qwen3_5MoeForCausalLM", "qwen3_5_moe_text", config);
  describe_delta(model, config);
  const std::int64_t keys = config["linear_num_key_heads"];
  const std::int64_t values = config["linear_num_value_heads"];
  if (keys == 0 || values % keys != 0)
    model.fields.refuse(".ssm.time_step_rank", fmt::format("a multiple of {} key heads", keys));
  config["quantization_config"]["value_heads"] = {
      {"key_heads", keys},
      {"value_heads", values},
      {"head_rows", config["linear_value_head_dim"]},
      {"rows_before", 2 * keys * config["linear_key_head_dim"].get<std::int64_t>()}};
}

/// GLM-5, of DeepSeek-V3's graph: layers without an indexer share the last one's choice.
void describe_glm_dsa(const GgufModel& model, json& config) {
  const GgufFields& in = model.fields;
  describe_deepseek(model, config);
  check_gating(in, kSigmoid);
  name_family("GlmMoeDsaForCausalLM", "glm_moe_dsa", config);
  config["index_topk"] = in.size(".attention.indexer.top_k");
  config["index_n_heads"] = in.size(".attention.indexer.head_count");
  config["index_head_dim"] = in.size(".attention.indexer.key_length");
  json types = json::array();
  for (std::int64_t layer = 0; layer < model.layers; ++layer)
    types.push_back(model.has(layer, "indexer.attn_k.weight") ? "full" : "shared");
  config["indexer_types"] = std::move(types);
}

/// Mistral-Small-4. How much queries grow is not in all files.
void describe_mistral4(const GgufModel& model, json& config) {
  constexpr double kPublishedGrowth = 0.1;
  const GgufFields& in = model.fields;
  describe_deepseek(model, config);
  check_gating(in, kSoftmax);
  name_family("Mistral4ForCausalLM", "mistral4", config);
  config.erase("topk_method");
  json& scaling = config["rope_scaling"];
  if (scaling.is_null()) in.refuse(".rope.scaling.type", "yarn");
  scaling["llama_4_scaling_beta"] = in.number_or(".attention.temperature_scale", kPublishedGrowth);
}

// clang-format off
#define FERRY_LAYER "model.layers.{layer}."
constexpr std::array kQwen2Names = {
    GgufName{"ffn_gate_inp_shexp.weight", FERRY_LAYER "mlp.shared_expert_gate.weight", GgufForm::one_row},
    GgufName{"ffn_gate_shexp.weight", FERRY_LAYER "mlp.shared_expert.gate_proj.weight"},
    GgufName{"ffn_up_shexp.weight", FERRY_LAYER "mlp.shared_expert.up_proj.weight"},
    GgufName{"ffn_down_shexp.weight", FERRY_LAYER "mlp.shared_expert.down_proj.weight"},
};

constexpr std::array kSparseBlockNames = {
    GgufName{"ffn_gate_inp.weight", FERRY_LAYER "block_sparse_moe.gate.weight"},
    GgufName{"exp_probs_b.bias", FERRY_LAYER "block_sparse_moe.e_score_correction_bias"},
    GgufName{"ffn_gate_exps.weight", FERRY_LAYER "block_sparse_moe.experts.{expert}.w1.weight", GgufForm::of_experts},
    GgufName{"ffn_up_exps.weight", FERRY_LAYER "block_sparse_moe.experts.{expert}.w3.weight", GgufForm::of_experts},
    GgufName{"ffn_down_exps.weight", FERRY_LAYER "block_sparse_moe.experts.{expert}.w2.weight", GgufForm::of_experts},
};

constexpr std::array kDeepseekNames = {
    GgufName{"attn_q_a.weight", FERRY_LAYER "self_attn.q_a_proj.weight"},
    GgufName{"attn_q_a_norm.weight", FERRY_LAYER "self_attn.q_a_layernorm.weight"},
    GgufName{"attn_q_b.weight", FERRY_LAYER "self_attn.q_b_proj.weight"},
    GgufName{"attn_kv_a_mqa.weight", FERRY_LAYER "self_attn.kv_a_proj_with_mqa.weight"},
    GgufName{"attn_kv_a_norm.weight", FERRY_LAYER "self_attn.kv_a_layernorm.weight"},
    GgufName{"attn_kv_b.weight", FERRY_LAYER "self_attn.kv_b_proj.weight"},
    GgufName{"attn_k_b.weight", FERRY_LAYER "self_attn.k_b_proj.weight"},
    GgufName{"attn_v_b.weight", FERRY_LAYER "self_attn.v_b_proj.weight"},
    GgufName{"exp_probs_b.bias", FERRY_LAYER "mlp.gate.e_score_correction_bias"},
    GgufName{"ffn_gate_shexp.weight", FERRY_LAYER "mlp.shared_experts.gate_proj.weight"},
    GgufName{"ffn_up_shexp.weight", FERRY_LAYER "mlp.shared_experts.up_proj.weight"},
    GgufName{"ffn_down_shexp.weight", FERRY_LAYER "mlp.shared_experts.down_proj.weight"},
};

constexpr std::array kGlmDsaNames = {
    kDeepseekNames[0], kDeepseekNames[1], kDeepseekNames[2], kDeepseekNames[3], kDeepseekNames[4], kDeepseekNames[5],
    kDeepseekNames[6], kDeepseekNames[7], kDeepseekNames[8], kDeepseekNames[9], kDeepseekNames[10], kDeepseekNames[11],
    GgufName{"indexer.attn_q_b.weight", FERRY_LAYER "self_attn.indexer.wq_b.weight"},
    GgufName{"indexer.attn_k.weight", FERRY_LAYER "self_attn.indexer.wk.weight"},
    GgufName{"indexer.k_norm.weight", FERRY_LAYER "self_attn.indexer.k_norm.weight"},
    GgufName{"indexer.k_norm.bias", FERRY_LAYER "self_attn.indexer.k_norm.bias"},
    GgufName{"indexer.proj.weight", FERRY_LAYER "self_attn.indexer.weights_proj.weight"},
};

constexpr std::array kErnieNames = {
    GgufName{"exp_probs_b.bias", FERRY_LAYER "mlp.moe_statics.e_score_correction_bias"},
    GgufName{"ffn_gate_shexp.weight", FERRY_LAYER "mlp.shared_experts.gate_proj.weight"},
    GgufName{"ffn_up_shexp.weight", FERRY_LAYER "mlp.shared_experts.up_proj.weight"},
    GgufName{"ffn_down_shexp.weight", FERRY_LAYER "mlp.shared_experts.down_proj.weight"},
};

constexpr std::array kHunyuanNames = {
    GgufName{"attn_q_norm.weight", FERRY_LAYER "self_attn.query_layernorm.weight"},
    GgufName{"attn_k_norm.weight", FERRY_LAYER "self_attn.key_layernorm.weight"},
    GgufName{"ffn_gate_inp.weight", FERRY_LAYER "mlp.gate.wg.weight"},
    GgufName{"ffn_gate_shexp.weight", FERRY_LAYER "mlp.shared_mlp.gate_proj.weight"},
    GgufName{"ffn_up_shexp.weight", FERRY_LAYER "mlp.shared_mlp.up_proj.weight"},
    GgufName{"ffn_down_shexp.weight", FERRY_LAYER "mlp.shared_mlp.down_proj.weight"},
};

constexpr std::array kGptOssNames = {
    GgufName{"attn_sinks.weight", FERRY_LAYER "self_attn.sinks"},
    GgufName{"ffn_gate_inp.weight", FERRY_LAYER "mlp.router.weight"},
    GgufName{"ffn_gate_inp.bias", FERRY_LAYER "mlp.router.bias"},
    GgufName{"ffn_gate_exps.bias", FERRY_LAYER "mlp.experts.{expert}.gate_proj.bias", GgufForm::of_experts},
    GgufName{"ffn_up_exps.bias", FERRY_LAYER "mlp.experts.{expert}.up_proj.bias", GgufForm::of_experts},
    GgufName{"ffn_down_exps.bias", FERRY_LAYER "mlp.experts.{expert}.down_proj.bias", GgufForm::of_experts},
};

constexpr std::array kQwen3NextNames = {
    kQwen2Names[0], kQwen2Names[1], kQwen2Names[2], kQwen2Names[3],
    GgufName{"output_norm.weight", "model.norm.weight", GgufForm::less_one},
    GgufName{"attn_norm.weight", FERRY_LAYER "input_layernorm.weight", GgufForm::less_one},
    GgufName{"post_attention_norm.weight", FERRY_LAYER "post_attention_layernorm.weight", GgufForm::less_one},
    GgufName{"attn_q_norm.weight", FERRY_LAYER "self_attn.q_norm.weight", GgufForm::less_one},
    GgufName{"attn_k_norm.weight", FERRY_LAYER "self_attn.k_norm.weight", GgufForm::less_one},
    GgufName{"ssm_in.weight", FERRY_LAYER "linear_attn.in_proj_qkvz.weight"},
    GgufName{"attn_qkv.weight", FERRY_LAYER "linear_attn.in_proj_qkv.weight"},
    GgufName{"attn_gate.weight", FERRY_LAYER "linear_attn.in_proj_z.weight"},
    GgufName{"ssm_ba.weight", FERRY_LAYER "linear_attn.in_proj_ba.weight"},
    GgufName{"ssm_conv1d.weight", FERRY_LAYER "linear_attn.conv1d.weight", GgufForm::taps},
    GgufName{"ssm_a", FERRY_LAYER "linear_attn.A_log", GgufForm::log_of_minus},
    GgufName{"ssm_dt.bias", FERRY_LAYER "linear_attn.dt_bias"},
    GgufName{"ssm_norm.weight", FERRY_LAYER "linear_attn.norm.weight"},
    GgufName{"ssm_out.weight", FERRY_LAYER "linear_attn.out_proj.weight"},
};

constexpr std::array kQwen35Names = {
    kQwen2Names[0], kQwen2Names[1], kQwen2Names[2], kQwen2Names[3],
    kQwen3NextNames[4], kQwen3NextNames[5], kQwen3NextNames[6], kQwen3NextNames[7], kQwen3NextNames[8],
    GgufName{"attn_qkv.weight", FERRY_LAYER "linear_attn.in_proj_qkv.weight"},
    GgufName{"attn_gate.weight", FERRY_LAYER "linear_attn.in_proj_z.weight"},
    GgufName{"ssm_beta.weight", FERRY_LAYER "linear_attn.in_proj_b.weight"},
    GgufName{"ssm_alpha.weight", FERRY_LAYER "linear_attn.in_proj_a.weight"},
    GgufName{"ssm_conv1d.weight", FERRY_LAYER "linear_attn.conv1d.weight", GgufForm::tiled_taps},
    GgufName{"ssm_a", FERRY_LAYER "linear_attn.A_log", GgufForm::tiled_log_of_minus},
    GgufName{"ssm_dt.bias", FERRY_LAYER "linear_attn.dt_bias", GgufForm::tiled},
    GgufName{"ssm_norm.weight", FERRY_LAYER "linear_attn.norm.weight"},
    GgufName{"ssm_out.weight", FERRY_LAYER "linear_attn.out_proj.weight"},
};
#undef FERRY_LAYER

constexpr std::array kArchitectures = {
    GgufArchitecture{"deepseek2", kDeepseekNames, describe_deepseek},
    GgufArchitecture{"dots1", kDeepseekNames, describe_dots1},
    GgufArchitecture{"ernie4_5-moe", kErnieNames, describe_ernie},
    GgufArchitecture{"glm-dsa", kGlmDsaNames, describe_glm_dsa},
    GgufArchitecture{"glm4moe", kDeepseekNames, describe_glm4_moe},
    GgufArchitecture{"gpt-oss", kGptOssNames, describe_gpt_oss},
    GgufArchitecture{"hunyuan-moe", kHunyuanNames, describe_hunyuan},
    GgufArchitecture{"llama", kSparseBlockNames, describe_mixtral},
    GgufArchitecture{"minimax-m2", kSparseBlockNames, describe_minimax},
    GgufArchitecture{"mistral4", kDeepseekNames, describe_mistral4},
    GgufArchitecture{"olmoe", {}, describe_olmoe},
    GgufArchitecture{"qwen2moe", kQwen2Names, describe_qwen2_moe},
    GgufArchitecture{"qwen35moe", kQwen35Names, describe_qwen35},
    GgufArchitecture{"qwen3moe", {}, describe_qwen3_moe},
    GgufArchitecture{"qwen3next", kQwen3NextNames, describe_qwen3_next},
};
// clang-format on

}  // namespace

std::span<const GgufArchitecture> gguf_architectures() { return kArchitectures; }

}  // namespace ferry
