"""ERNIE-4.5."""

import transformers

from ..checkpoint import Family, case

ERNIE = Family(transformers.Ernie4_5_MoeConfig, transformers.Ernie4_5_MoeForCausalLM)

CASES = {
    "ernie4_5_moe": case(
        ERNIE, seed=153, hidden_size=60, num_attention_heads=6, num_key_value_heads=3, num_hidden_layers=3,
        moe_num_experts=10, moe_k=3, moe_intermediate_size=20, moe_num_shared_experts=2, moe_layer_start_index=1,
        moe_layer_end_index=-1, moe_layer_interval=1, vocab_size=320, bos_token_id=None, eos_token_id=2,
        rope_theta=500000.0, dtype="bfloat16", prompts=(5, 17, 40)),
}
