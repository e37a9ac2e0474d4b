// Written by tools/config_defaults.py (transformers 5.24.0): do not edit.
#include "ferry/model/config_defaults.h"

#include <array>
#include <utility>

namespace ferry {

namespace {

// clang-format off
constexpr std::array<std::pair<std::string_view, std::string_view>, 20> kDefaults = {{
    {"deepseek_v2",
     R"({"attention_bias": false, "eos_token_id": 2, "first_k_dense_replace": 0, "hidden_act":
       "silu", "hidden_size": 4096, "intermediate_size": 11008, "kv_lora_rank": 512,
       "max_position_embeddings": 2048, "mlp_bias": false, "moe_intermediate_size": 1407,
       "n_routed_experts": 64, "n_shared_experts": 2, "norm_topk_prob": false,
       "num_attention_heads": 32, "num_hidden_layers": 32, "q_lora_rank": 1536,
       "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06, "rope_theta":
       10000.0, "routed_scaling_factor": 1.0, "tie_word_embeddings": false, "topk_method":
       "greedy", "v_head_dim": 128, "vocab_size": 102400})"},
    {"deepseek_v3",
     R"({"attention_bias": false, "eos_token_id": 1, "first_k_dense_replace": 3, "hidden_act":
       "silu", "hidden_size": 7168, "intermediate_size": 18432, "kv_lora_rank": 512,
       "max_position_embeddings": 4096, "moe_intermediate_size": 2048, "n_group": 8,
       "n_routed_experts": 256, "n_shared_experts": 1, "norm_topk_prob": true,
       "num_attention_heads": 128, "num_experts_per_tok": 8, "num_hidden_layers": 61,
       "num_key_value_heads": 128, "num_mtp_layers": 1, "q_lora_rank": 1536,
       "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06,
       "rope_interleave": true, "rope_theta": 10000.0, "routed_scaling_factor": 2.5,
       "tie_word_embeddings": false, "topk_group": 4, "v_head_dim": 128, "vocab_size":
       129280})"},
    {"deepseek_v32",
     R"({"attention_bias": false, "eos_token_id": 1, "first_k_dense_replace": 3, "head_dim": 64,
       "hidden_act": "silu", "hidden_size": 7168, "index_head_dim": 128, "index_n_heads":
       64, "index_topk": 2048, "intermediate_size": 18432, "kv_lora_rank": 512,
       "max_position_embeddings": 163840, "mlp_bias": false, "moe_intermediate_size": 2048,
       "n_group": 8, "n_routed_experts": 256, "n_shared_experts": 1, "norm_topk_prob": true,
       "num_attention_heads": 128, "num_experts_per_tok": 8, "num_hidden_layers": 61,
       "num_key_value_heads": 128, "q_lora_rank": 1536, "qk_nope_head_dim": 128,
       "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06, "rope_theta": 10000.0,
       "routed_scaling_factor": 2.5, "tie_word_embeddings": false, "topk_group": 4,
       "v_head_dim": 128, "vocab_size": 129280})"},
    {"dots1",
     R"({"attention_bias": false, "first_k_dense_replace": 0, "hidden_act": "silu", "hidden_size":
       4608, "intermediate_size": 10944, "max_position_embeddings": 2048,
       "max_window_layers": 62, "moe_intermediate_size": 1408, "n_group": 1,
       "norm_topk_prob": false, "num_attention_heads": 32, "num_hidden_layers": 62,
       "num_key_value_heads": 32, "rms_norm_eps": 1e-06, "rope_theta": 10000.0,
       "routed_scaling_factor": 1.0, "sliding_window": 4096, "tie_word_embeddings": false,
       "topk_group": 1, "vocab_size": 152064})"},
    {"ernie4_5_moe",
     R"({"eos_token_id": 2, "hidden_act": "silu", "hidden_size": 2560, "intermediate_size": 12288,
       "max_position_embeddings": 131072, "moe_intermediate_size": 1536, "moe_k": 6,
       "moe_layer_end_index": -1, "moe_layer_interval": 1, "moe_layer_start_index": 1,
       "moe_norm_min": 1e-12, "moe_num_experts": 64, "moe_num_shared_experts": 2,
       "num_attention_heads": 20, "num_hidden_layers": 28, "num_key_value_heads": 4,
       "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "tie_word_embeddings": true,
       "use_bias": false, "vocab_size": 103424})"},
    {"glm4_moe",
     R"({"attention_bias": false, "first_k_dense_replace": 1, "hidden_act": "silu", "hidden_size":
       4096, "intermediate_size": 10944, "max_position_embeddings": 131072,
       "moe_intermediate_size": 1408, "n_group": 1, "n_routed_experts": 128,
       "n_shared_experts": 1, "norm_topk_prob": true, "num_attention_heads": 96,
       "num_experts_per_tok": 8, "num_hidden_layers": 46, "num_key_value_heads": 8,
       "num_mtp_layers": 1, "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-05,
       "rope_theta": 10000.0, "routed_scaling_factor": 1.0, "tie_word_embeddings": false,
       "topk_group": 1, "use_qk_norm": false, "vocab_size": 151552})"},
    {"glm4_moe_lite",
     R"({"attention_bias": false, "eos_token_id": 1, "hidden_act": "silu", "hidden_size": 2048,
       "intermediate_size": 10240, "kv_lora_rank": 512, "max_position_embeddings": 202752,
       "moe_intermediate_size": 1536, "n_group": 1, "n_routed_experts": 64,
       "n_shared_experts": 1, "norm_topk_prob": true, "num_attention_heads": 20,
       "num_experts_per_tok": 4, "num_hidden_layers": 47, "num_key_value_heads": 20,
       "q_lora_rank": 768, "qk_nope_head_dim": 192, "qk_rope_head_dim": 64, "rms_norm_eps":
       1e-05, "rope_interleave": true, "rope_theta": 10000.0, "routed_scaling_factor": 1.8,
       "tie_word_embeddings": false, "topk_group": 1, "v_head_dim": 256, "vocab_size":
       154880})"},
    {"glm_moe_dsa",
     R"({"attention_bias": false, "eos_token_id": 1, "first_k_dense_replace": 3, "head_dim": 64,
       "hidden_act": "silu", "hidden_size": 6144, "index_head_dim": 128, "index_n_heads":
       32, "index_topk": 2048, "intermediate_size": 12288, "kv_lora_rank": 512,
       "max_position_embeddings": 202752, "mlp_bias": false, "moe_intermediate_size": 2048,
       "n_group": 1, "n_routed_experts": 256, "n_shared_experts": 1, "norm_topk_prob": true,
       "num_attention_heads": 64, "num_experts_per_tok": 8, "num_hidden_layers": 78,
       "num_key_value_heads": 64, "q_lora_rank": 2048, "qk_nope_head_dim": 192,
       "qk_rope_head_dim": 64, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
       "routed_scaling_factor": 2.5, "tie_word_embeddings": false, "topk_group": 1,
       "v_head_dim": 256, "vocab_size": 154880})"},
    {"gpt_oss",
     R"({"attention_bias": true, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2880,
       "intermediate_size": 2880, "max_position_embeddings": 131072, "num_attention_heads":
       64, "num_experts_per_tok": 4, "num_hidden_layers": 36, "num_key_value_heads": 8,
       "num_local_experts": 128, "rms_norm_eps": 1e-05, "rope_parameters": {"rope_type":
       "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": false,
       "original_max_position_embeddings": 4096}, "rope_theta": 150000.0, "sliding_window":
       128, "swiglu_alpha": 1.702, "swiglu_limit": 7.0, "tie_word_embeddings": false,
       "vocab_size": 201088})"},
    {"hunyuan_v1_moe",
     R"({"attention_bias": false, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096,
       "intermediate_size": 11008, "max_position_embeddings": 2048, "moe_topk": 1,
       "num_attention_heads": 32, "num_experts": 1, "num_hidden_layers": 32, "rms_norm_eps":
       1e-05, "rope_theta": 10000.0, "tie_word_embeddings": false, "vocab_size": 290943})"},
    {"lfm2_moe",
     R"({"conv_L_cache": 3, "conv_bias": false, "eos_token_id": 2, "hidden_size": 2048,
       "intermediate_size": 7168, "max_position_embeddings": 128000,
       "moe_intermediate_size": 1792, "norm_eps": 1e-05, "norm_topk_prob": true,
       "num_attention_heads": 32, "num_dense_layers": 2, "num_experts": 32,
       "num_experts_per_tok": 4, "num_hidden_layers": 32, "num_key_value_heads": 8,
       "rope_theta": 1000000.0, "routed_scaling_factor": 1.0, "tie_word_embeddings": true,
       "use_expert_bias": true, "vocab_size": 65536})"},
    {"llama4_text",
     R"({"attention_bias": false, "attention_chunk_size": 8192, "attn_scale": 0.1,
       "attn_temperature_tuning": true, "eos_token_id": 2, "floor_scale": 8192, "head_dim":
       128, "hidden_act": "silu", "hidden_size": 5120, "interleave_moe_layer_step": 1,
       "intermediate_size": 8192, "intermediate_size_mlp": 16384, "max_position_embeddings":
       131072, "no_rope_layer_interval": 4, "num_attention_heads": 40,
       "num_experts_per_tok": 1, "num_hidden_layers": 48, "num_key_value_heads": 8,
       "num_local_experts": 16, "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
       "tie_word_embeddings": false, "use_qk_norm": true, "vocab_size": 202048})"},
    {"minimax_m2",
     R"({"eos_token_id": 200020, "head_dim": 128, "hidden_act": "silu", "hidden_size": 3072,
       "intermediate_size": 1536, "max_position_embeddings": 196608, "num_attention_heads":
       48, "num_experts_per_tok": 8, "num_hidden_layers": 62, "num_key_value_heads": 8,
       "num_local_experts": 256, "rms_norm_eps": 1e-06, "rope_theta": 5000000.0,
       "tie_word_embeddings": false, "vocab_size": 200064})"},
    {"mistral4",
     R"({"attention_bias": false, "eos_token_id": 2, "first_k_dense_replace": 0, "hidden_act":
       "silu", "hidden_size": 4096, "intermediate_size": 12288, "kv_lora_rank": 256,
       "max_position_embeddings": 1048576, "moe_intermediate_size": 2048, "n_group": 1,
       "n_routed_experts": 128, "n_shared_experts": 1, "norm_topk_prob": true,
       "num_attention_heads": 32, "num_experts_per_tok": 4, "num_hidden_layers": 36,
       "num_key_value_heads": 32, "q_lora_rank": 1024, "qk_nope_head_dim": 64,
       "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06, "rope_interleave": true,
       "rope_parameters": {"factor": 128.0, "original_max_position_embeddings": 8192,
       "max_position_embeddings": 1048576, "beta_fast": 32.0, "beta_slow": 1.0,
       "mscale_all_dim": 1.0, "mscale": 1.0, "llama_4_scaling_beta": 0.1, "rope_type":
       "yarn"}, "rope_theta": 10000.0, "routed_scaling_factor": 1.0, "tie_word_embeddings":
       false, "topk_group": 1, "v_head_dim": 128, "vocab_size": 131072})"},
    {"mixtral",
     R"({"eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336,
       "max_position_embeddings": 131072, "num_attention_heads": 32, "num_experts_per_tok":
       2, "num_hidden_layers": 32, "num_key_value_heads": 8, "num_local_experts": 8,
       "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "tie_word_embeddings": false,
       "vocab_size": 32000})"},
    {"olmoe",
     R"({"attention_bias": false, "eos_token_id": 50279, "hidden_act": "silu", "hidden_size": 2048,
       "intermediate_size": 2048, "max_position_embeddings": 4096, "norm_topk_prob": false,
       "num_attention_heads": 16, "num_experts": 64, "num_experts_per_tok": 8,
       "num_hidden_layers": 16, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
       "tie_word_embeddings": false, "vocab_size": 50304})"},
    {"qwen2_moe",
     R"({"decoder_sparse_step": 1, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size":
       5632, "max_position_embeddings": 32768, "max_window_layers": 28,
       "moe_intermediate_size": 1408, "norm_topk_prob": false, "num_attention_heads": 16,
       "num_experts": 60, "num_experts_per_tok": 4, "num_hidden_layers": 24,
       "num_key_value_heads": 16, "qkv_bias": true, "rms_norm_eps": 1e-06, "rope_theta":
       10000.0, "shared_expert_intermediate_size": 5632, "sliding_window": 4096,
       "tie_word_embeddings": false, "use_sliding_window": false, "vocab_size": 151936})"},
    {"qwen3_5_moe_text",
     R"({"attention_bias": false, "head_dim": 256, "hidden_act": "silu", "hidden_size": 2048,
       "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128, "linear_num_key_heads": 16,
       "linear_num_value_heads": 32, "linear_value_head_dim": 128,
       "max_position_embeddings": 32768, "moe_intermediate_size": 512,
       "num_attention_heads": 16, "num_experts": 256, "num_experts_per_tok": 8,
       "num_hidden_layers": 40, "num_key_value_heads": 2, "partial_rotary_factor": 0.25,
       "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "shared_expert_intermediate_size": 512,
       "tie_word_embeddings": false, "vocab_size": 248320})"},
    {"qwen3_moe",
     R"({"attention_bias": false, "decoder_sparse_step": 1, "hidden_act": "silu", "hidden_size":
       2048, "intermediate_size": 6144, "max_position_embeddings": 32768,
       "moe_intermediate_size": 768, "norm_topk_prob": false, "num_attention_heads": 32,
       "num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 24,
       "num_key_value_heads": 4, "rms_norm_eps": 1e-06, "rope_theta": 10000.0,
       "sliding_window": 4096, "tie_word_embeddings": false, "use_sliding_window": false,
       "vocab_size": 151936})"},
    {"qwen3_next",
     R"({"attention_bias": false, "decoder_sparse_step": 1, "head_dim": 256, "hidden_act": "silu",
       "hidden_size": 2048, "intermediate_size": 5632, "linear_conv_kernel_dim": 4,
       "linear_key_head_dim": 128, "linear_num_key_heads": 16, "linear_num_value_heads": 32,
       "linear_value_head_dim": 128, "max_position_embeddings": 32768,
       "moe_intermediate_size": 512, "norm_topk_prob": true, "num_attention_heads": 16,
       "num_experts": 512, "num_experts_per_tok": 10, "num_hidden_layers": 48,
       "num_key_value_heads": 2, "partial_rotary_factor": 0.25, "rms_norm_eps": 1e-06,
       "rope_theta": 10000.0, "shared_expert_intermediate_size": 512, "tie_word_embeddings":
       false, "vocab_size": 151936})"},
}};
// clang-format on

}  // namespace

std::string_view config_defaults(std::string_view model_type) {
  for (const auto& [type, fields] : kDefaults)
    if (type == model_type) return fields;
  return "{}";
}

}  // namespace ferry
