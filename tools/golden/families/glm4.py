"""GLM-4.5, GLM-4.7-Flash and GLM-5."""

import transformers

from ..checkpoint import Family, case

GLM4 = Family(transformers.Glm4MoeConfig, transformers.Glm4MoeForCausalLM)
LITE = Family(transformers.Glm4MoeLiteConfig, transformers.Glm4MoeLiteForCausalLM)
GLM5 = Family(transformers.GlmMoeDsaConfig, transformers.GlmMoeDsaForCausalLM)

CASES = {
    "glm4_moe": case(  # half of a head turns unsaid
        GLM4, seed=126, hidden_size=72, num_attention_heads=6, num_key_value_heads=2, head_dim=20,
        num_hidden_layers=2, n_routed_experts=10, num_experts_per_tok=3, moe_intermediate_size=20,
        n_shared_experts=1, first_k_dense_replace=1, n_group=2, topk_group=1, routed_scaling_factor=2.5,
        norm_topk_prob=True, attention_bias=True, use_qk_norm=True, num_mtp_layers=0, vocab_size=320,
        rope_theta=1000000.0, eos_token_id=2, prompts=(1, 17, 40)),
    "glm4_moe_mtp": case(
        GLM4, seed=134, hidden_size=56, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        num_hidden_layers=2, n_routed_experts=7, num_experts_per_tok=2, moe_intermediate_size=16,
        n_shared_experts=1, first_k_dense_replace=1, n_group=1, topk_group=1, routed_scaling_factor=2.5,
        norm_topk_prob=True, attention_bias=True, use_qk_norm=True, num_mtp_layers=1, vocab_size=300,
        rope_theta=1000000.0, eos_token_id=2, drafts=True, prompts=(1, 17, 40)),
    "glm4_moe_air_bf16": case(
        GLM4, seed=127, hidden_size=56, num_attention_heads=4, num_key_value_heads=1, head_dim=24,
        num_hidden_layers=2, n_routed_experts=7, num_experts_per_tok=2, moe_intermediate_size=28,
        n_shared_experts=2, first_k_dense_replace=1, routed_scaling_factor=1.0, norm_topk_prob=True,
        attention_bias=True, use_qk_norm=False, num_mtp_layers=0, vocab_size=300, partial_rotary_factor=0.25,
        rope_theta=10000.0, eos_token_id=2, dtype="bfloat16", new=True, prompts=(5, 40)),
    "glm4_moe_lite": case(  # a dense layer behind a sparse one
        LITE, seed=128, hidden_size=72, num_attention_heads=5, num_key_value_heads=5, num_hidden_layers=3, q_lora_rank=24,
        kv_lora_rank=20, qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=16, n_routed_experts=7, num_experts_per_tok=3,
        moe_intermediate_size=20, n_shared_experts=1, mlp_layer_types=["sparse", "dense", "sparse"], n_group=1, topk_group=1,
        norm_topk_prob=True, routed_scaling_factor=1.8, vocab_size=320, bos_token_id=None, eos_token_id=2,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}, new=True, prompts=(1, 17, 40)),
    "glm_moe_dsa": case(  # the second layer's indexer is the first one's
        GLM5, seed=629, hidden_size=64, num_attention_heads=4, num_key_value_heads=4, num_hidden_layers=3, q_lora_rank=24,
        kv_lora_rank=20, qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=16, n_routed_experts=6, num_experts_per_tok=2,
        moe_intermediate_size=20, n_shared_experts=1, first_k_dense_replace=1, n_group=1, topk_group=1,
        norm_topk_prob=True, routed_scaling_factor=1.5, index_topk=496, index_head_dim=16, index_n_heads=2,
        indexer_types=["full", "shared", "full"], vocab_size=320, bos_token_id=None, eos_token_id=2,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}, dtype="bfloat16", new=True, prompts=(5, 40)),
    "glm_moe_dsa_sparse": case(  # indexers that choose, and layers that share their choice
        GLM5, seed=630, hidden_size=64, num_attention_heads=4, num_key_value_heads=4, num_hidden_layers=4, q_lora_rank=24,
        kv_lora_rank=20, qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=16, n_routed_experts=6, num_experts_per_tok=2,
        moe_intermediate_size=20, n_shared_experts=1, first_k_dense_replace=1, n_group=1, topk_group=1,
        norm_topk_prob=True, routed_scaling_factor=1.5, index_topk=17, index_head_dim=16, index_n_heads=10,
        indexer_types=["full", "shared", "full", "shared"], vocab_size=320, bos_token_id=None, eos_token_id=2,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}, dtype="bfloat16", new=True,
        bf16_calc_diff=1e-2, prompts=(5, 40)),
}
