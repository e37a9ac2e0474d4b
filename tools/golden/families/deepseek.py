"""DeepSeek-V2, -V3 and -V3.2, and Kimi-K2, which is a V3 by another name, alone and inside a model that sees pictures."""

import transformers

from ..checkpoint import Family, case, yarn


def to_hub(config: dict) -> None:
    for key in ("head_dim", "qk_head_dim", "rope_interleave"):
        config.pop(key, None)
    config["moe_layer_freq"] = 1


def v2_to_hub(config: dict, _new: dict) -> None:
    to_hub(config)
    config["scoring_func"] = "softmax"


def v3_to_hub(config: dict, _new: dict) -> None:
    to_hub(config)
    config["scoring_func"] = "sigmoid"
    config["topk_method"] = "noaux_tc"


DEEPSEEK_V2 = Family(transformers.DeepseekV2Config, transformers.DeepseekV2ForCausalLM, v2_to_hub)
DEEPSEEK_V3 = Family(transformers.DeepseekV3Config, transformers.DeepseekV3ForCausalLM, v3_to_hub)
DEEPSEEK_V32 = Family(transformers.DeepseekV32Config, transformers.DeepseekV32ForCausalLM, v3_to_hub)


CASES = {
    "deepseek_v2_lite": case(
        DEEPSEEK_V2, seed=121, hidden_size=72, num_attention_heads=3, num_hidden_layers=2, q_lora_rank=None,
        kv_lora_rank=40, qk_nope_head_dim=20, qk_rope_head_dim=12, v_head_dim=28, n_routed_experts=7,
        num_experts_per_tok=3, moe_intermediate_size=24, n_shared_experts=2, first_k_dense_replace=1,
        topk_method="greedy", routed_scaling_factor=1.0, norm_topk_prob=False, vocab_size=331, bos_token_id=None,
        eos_token_id=2, rope_parameters=yarn(10000.0, 8.0, mscale=0.707, mscale_all_dim=0.707), prompts=(1, 17, 40)),
    "deepseek_v2_groups_bf16": case(
        DEEPSEEK_V2, seed=122, hidden_size=64, num_attention_heads=4, num_hidden_layers=2, q_lora_rank=44,
        kv_lora_rank=36, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=20, n_routed_experts=9,
        num_experts_per_tok=3, moe_intermediate_size=20, n_shared_experts=1, first_k_dense_replace=0,
        topk_method="group_limited_greedy", n_group=3, topk_group=2, routed_scaling_factor=4.0, norm_topk_prob=False,
        vocab_size=300, bos_token_id=None, eos_token_id=2, dtype="bfloat16", new=True, prompts=(5, 24)),
    "deepseek_v3": case(  # the bias makes every key negative: a mask of zeros would choose others
        DEEPSEEK_V3, seed=123, hidden_size=80, num_attention_heads=5, num_key_value_heads=5,
        num_hidden_layers=2, q_lora_rank=36, kv_lora_rank=44, qk_nope_head_dim=24, qk_rope_head_dim=10, v_head_dim=12,
        n_routed_experts=12, num_experts_per_tok=4, moe_intermediate_size=20, n_shared_experts=1,
        first_k_dense_replace=1, n_group=4, topk_group=2, routed_scaling_factor=2.5, norm_topk_prob=True,
        choice_bias=-2.0, num_mtp_layers=0, vocab_size=320, bos_token_id=None, eos_token_id=2,
        rope_parameters=yarn(10000.0, 8.0, mscale=1.0, mscale_all_dim=1.0), prompts=(1, 17, 40)),
    "deepseek_v3_mtp": case(
        DEEPSEEK_V3, seed=133, hidden_size=56, num_attention_heads=3, num_key_value_heads=3,
        num_hidden_layers=2, q_lora_rank=20, kv_lora_rank=24, qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=12,
        n_routed_experts=6, num_experts_per_tok=2, moe_intermediate_size=16, n_shared_experts=1,
        first_k_dense_replace=1, n_group=2, topk_group=1, routed_scaling_factor=2.5, norm_topk_prob=True,
        choice_bias=-2.0, num_mtp_layers=1, vocab_size=300, bos_token_id=None, eos_token_id=2, drafts=True,
        rope_parameters=yarn(10000.0, 8.0, mscale=1.0, mscale_all_dim=1.0), prompts=(1, 17, 40)),
    "deepseek_v3_fp8": case(  # blocks of 128 x 128 that are not whole at either end
        DEEPSEEK_V3, seed=124, hidden_size=144, num_attention_heads=3, num_key_value_heads=3,
        num_hidden_layers=2, q_lora_rank=132, kv_lora_rank=48, qk_nope_head_dim=32, qk_rope_head_dim=16,
        v_head_dim=24, n_routed_experts=6, num_experts_per_tok=2, moe_intermediate_size=36, n_shared_experts=2,
        first_k_dense_replace=1, n_group=2, topk_group=1, routed_scaling_factor=2.5, norm_topk_prob=True,
        num_mtp_layers=0, vocab_size=300, bos_token_id=None, eos_token_id=2, packed="fp8", dtype="bfloat16",
        rope_parameters=yarn(10000.0, 8.0, mscale=1.0, mscale_all_dim=1.0), prompts=(5, 40)),
    "kimi_k2": case(
        DEEPSEEK_V3, seed=125, model_type="kimi_k2", hidden_size=64, num_attention_heads=4,
        num_key_value_heads=4, num_hidden_layers=2, q_lora_rank=40, kv_lora_rank=32, qk_nope_head_dim=16,
        qk_rope_head_dim=8, v_head_dim=16, n_routed_experts=13, num_experts_per_tok=5, moe_intermediate_size=16,
        n_shared_experts=1, first_k_dense_replace=1, n_group=1, topk_group=1, routed_scaling_factor=2.827,
        norm_topk_prob=True, num_mtp_layers=0, vocab_size=320, rms_norm_eps=1e-5, bos_token_id=None, eos_token_id=2,
        rope_parameters=yarn(50000.0, 8.0, beta_fast=1.0, mscale=1.0, mscale_all_dim=1.0), shard="120KB",
        prompts=(5, 24)),
    "deepseek_v32": case(  # as many positions as its indexer keeps
        DEEPSEEK_V32, seed=130, hidden_size=72, num_attention_heads=3, num_key_value_heads=3, num_hidden_layers=2,
        q_lora_rank=28, kv_lora_rank=24, qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=16, n_routed_experts=10,
        num_experts_per_tok=3, moe_intermediate_size=20, n_shared_experts=1, first_k_dense_replace=1, n_group=2,
        topk_group=1, routed_scaling_factor=2.5, norm_topk_prob=True, index_topk=496, index_head_dim=16, index_n_heads=2,
        vocab_size=320, bos_token_id=None, eos_token_id=2, rope_parameters=yarn(10000.0, 8.0, mscale=1.0, mscale_all_dim=1.0),
        prompts=(1, 17, 40)),
    "deepseek_v32_sparse": case(  # the same with an indexer that chooses
        DEEPSEEK_V32, seed=132, hidden_size=72, num_attention_heads=3, num_key_value_heads=3, num_hidden_layers=2,
        q_lora_rank=28, kv_lora_rank=24, qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=16, n_routed_experts=10,
        num_experts_per_tok=3, moe_intermediate_size=20, n_shared_experts=1, first_k_dense_replace=1, n_group=2,
        topk_group=1, routed_scaling_factor=2.5, norm_topk_prob=True, index_topk=12, index_head_dim=20, index_n_heads=9,
        vocab_size=320, bos_token_id=None, eos_token_id=2, rope_parameters=yarn(10000.0, 8.0, mscale=1.0, mscale_all_dim=1.0),
        bf16_calc_diff=1e-2, prompts=(3, 17, 40)),
    "kimi_k25_pictures_int4": case(
        DEEPSEEK_V3, seed=131, hidden_size=64, num_attention_heads=4, num_key_value_heads=4, num_hidden_layers=2,
        q_lora_rank=28, kv_lora_rank=20, qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=12, n_routed_experts=9,
        num_experts_per_tok=3, moe_intermediate_size=32, n_shared_experts=1, first_k_dense_replace=1, n_group=1,
        topk_group=1, routed_scaling_factor=2.827, norm_topk_prob=True, num_mtp_layers=0, vocab_size=300,
        bos_token_id=None, eos_token_id=2, rope_parameters=yarn(50000.0, 8.0, beta_fast=1.0, mscale=1.0, mscale_all_dim=1.0),
        dtype="bfloat16", packed="wna16_pictures", prompts=(5, 24)),
}
