"""Mistral-Small-4, its text model."""

import transformers

from ..checkpoint import Family, case, yarn

MISTRAL4 = Family(transformers.Mistral4Config, transformers.Mistral4ForCausalLM, fused_experts=True)

CASES = {
    "mistral4": case(  # queries grow from the 13th position on
        MISTRAL4, seed=255, hidden_size=72, num_attention_heads=3, num_key_value_heads=3, num_hidden_layers=2,
        q_lora_rank=40, kv_lora_rank=28, qk_nope_head_dim=20, qk_rope_head_dim=8, v_head_dim=12, n_routed_experts=12,
        num_experts_per_tok=3, moe_intermediate_size=20, n_shared_experts=1, first_k_dense_replace=1, n_group=3,
        topk_group=2, norm_topk_prob=True, routed_scaling_factor=1.5, vocab_size=331, bos_token_id=None, eos_token_id=2,
        rope_parameters={**yarn(10000.0, 8.0, mscale=1.0, mscale_all_dim=1.0, llama_4_scaling_beta=0.3),
                         "original_max_position_embeddings": 13}, new=True, prompts=(1, 17, 40)),
}
