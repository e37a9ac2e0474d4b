"""dots.llm1."""

import transformers

from ..checkpoint import Family, case

DOTS1 = Family(transformers.Dots1Config, transformers.Dots1ForCausalLM)

CASES = {
    "dots1": case(  # a window in the last layer
        DOTS1, seed=352, hidden_size=56, num_attention_heads=5, num_key_value_heads=1, head_dim=16, num_hidden_layers=3,
        n_routed_experts=8, num_experts_per_tok=3, moe_intermediate_size=20, n_shared_experts=2, first_k_dense_replace=1,
        n_group=2, topk_group=1, norm_topk_prob=True, routed_scaling_factor=1.2, sliding_window=9, max_window_layers=2,
        vocab_size=320, eos_token_id=2, rope_theta=10000.0, prompts=(1, 17, 40)),
}
