"""Qwen2-MoE and Qwen3-MoE."""

import transformers

from ..checkpoint import Family, case


def qwen2_to_hub(config: dict, _new: dict) -> None:
    config["sliding_window"] = 32  # off: use_sliding_window


def qwen3_to_hub(config: dict, _new: dict) -> None:
    config["num_experts"] = config.pop("num_local_experts")
    config["sliding_window"] = config["rope_scaling"] = None


QWEN2 = Family(transformers.Qwen2MoeConfig, transformers.Qwen2MoeForCausalLM, qwen2_to_hub)
QWEN3 = Family(transformers.Qwen3MoeConfig, transformers.Qwen3MoeForCausalLM, qwen3_to_hub)

CASES = {
    "qwen2_untied": case(
        QWEN2, seed=1, hidden_size=72, num_attention_heads=3, num_key_value_heads=1, num_hidden_layers=2,
        num_experts=5, num_experts_per_tok=2, moe_intermediate_size=24, shared_expert_intermediate_size=56,
        norm_topk_prob=False, rope_theta=1000000.0, vocab_size=331, prompts=(1, 17, 40)),
    "qwen2_tied_sharded": case(
        QWEN2, seed=2, hidden_size=40, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=3,
        num_experts=7, num_experts_per_tok=4, moe_intermediate_size=24, shared_expert_intermediate_size=48,
        norm_topk_prob=True, rope_theta=50000.0, vocab_size=320, tie_word_embeddings=True,
        mlp_only_layers=[1], shard="60KB", prompts=(1, 5, 40)),
    "qwen2_bf16_sparse_step": case(
        QWEN2, seed=3, hidden_size=84, num_attention_heads=6, num_key_value_heads=2, num_hidden_layers=4,
        num_experts=6, num_experts_per_tok=1, moe_intermediate_size=36, shared_expert_intermediate_size=28,
        norm_topk_prob=False, rope_theta=10000.0, vocab_size=320, decoder_sparse_step=2, dtype="bfloat16",
        prompts=(5, 17, 40)),
    "qwen2_new_config": case(
        QWEN2, seed=4, hidden_size=88, num_attention_heads=2, num_key_value_heads=2, num_hidden_layers=2,
        num_experts=9, num_experts_per_tok=4, moe_intermediate_size=20, shared_expert_intermediate_size=76,
        norm_topk_prob=False, rope_theta=250000.0, rms_norm_eps=1e-5, vocab_size=320, dtype="bfloat16", new=True,
        prompts=(1, 17)),
    "qwen3_untied": case(
        QWEN3, seed=5, hidden_size=72, num_attention_heads=6, num_key_value_heads=2, head_dim=20,
        num_hidden_layers=2, num_experts=7, num_experts_per_tok=4, moe_intermediate_size=24,
        norm_topk_prob=True, rope_theta=1000000.0, vocab_size=331, prompts=(1, 17, 40)),
    "qwen3_f16_tied_sharded": case(
        QWEN3, seed=6, hidden_size=40, num_attention_heads=3, num_key_value_heads=1, head_dim=32,
        num_hidden_layers=2, num_experts=5, num_experts_per_tok=1, moe_intermediate_size=56,
        norm_topk_prob=False, rope_theta=10000.0, vocab_size=320, tie_word_embeddings=True,
        dtype="float16", shard="40KB", prompts=(5, 40)),
    "qwen3_new_config_mixed": case(
        QWEN3, seed=7, hidden_size=56, num_attention_heads=5, num_key_value_heads=1, head_dim=16,
        num_hidden_layers=4, num_experts=9, num_experts_per_tok=2, moe_intermediate_size=28,
        norm_topk_prob=True, rope_theta=75000.0, vocab_size=307, attention_bias=True,
        decoder_sparse_step=2, mlp_only_layers=[3], new=True, prompts=(17, 40)),
    "qwen3_stacked": case(
        QWEN3, seed=9, hidden_size=48, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        num_hidden_layers=2, num_experts=5, num_experts_per_tok=2, moe_intermediate_size=20, norm_topk_prob=True,
        rope_theta=10000.0, vocab_size=300, stacked=True, new=True, prompts=(5, 24)),
    "qwen3_int4_zeros": case(
        QWEN3, seed=10, hidden_size=96, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        num_hidden_layers=2, num_experts=5, num_experts_per_tok=2, moe_intermediate_size=64, norm_topk_prob=True,
        rope_theta=10000.0, vocab_size=300, dtype="bfloat16", packed="wna16", prompts=(5, 24)),
    "qwen3_gptq_order": case(
        QWEN3, seed=11, hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        num_hidden_layers=2, num_experts=5, num_experts_per_tok=2, moe_intermediate_size=48, norm_topk_prob=True,
        rope_theta=10000.0, vocab_size=300, dtype="float16", packed="gptq", prompts=(5, 24)),
    "qwen2_awq": case(
        QWEN2, seed=12, hidden_size=64, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=2, num_experts=5,
        num_experts_per_tok=2, moe_intermediate_size=32, shared_expert_intermediate_size=48, norm_topk_prob=True,
        rope_theta=10000.0, vocab_size=300, dtype="float16", packed="awq", prompts=(5, 24)),
    "qwen3_bf16": case(
        QWEN3, seed=8, hidden_size=136, num_attention_heads=4, num_key_value_heads=2, head_dim=48,
        num_hidden_layers=2, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=24,
        norm_topk_prob=True, rope_theta=5000000.0, vocab_size=300, dtype="bfloat16", prompts=(1, 5, 40)),
}
