"""Mixtral."""

import transformers

from ..checkpoint import Family, case

MIXTRAL = Family(transformers.MixtralConfig, transformers.MixtralForCausalLM)

CASES = {
    "mixtral": case(
        MIXTRAL, seed=101, hidden_size=72, num_attention_heads=6, num_key_value_heads=2, head_dim=16,
        num_hidden_layers=2, num_local_experts=7, num_experts_per_tok=2, intermediate_size=24,
        rope_theta=1000000.0, rms_norm_eps=1e-5, vocab_size=331, prompts=(1, 17, 40)),
    "mixtral_window_bf16": case(
        MIXTRAL, seed=102, hidden_size=40, num_attention_heads=4, num_key_value_heads=4, num_hidden_layers=2,
        num_local_experts=5, num_experts_per_tok=3, intermediate_size=32, rope_theta=10000.0, rms_norm_eps=1e-5,
        sliding_window=11, vocab_size=320, dtype="bfloat16", new=True, prompts=(5, 40)),
}
