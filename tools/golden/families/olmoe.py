"""OLMoE."""

import transformers

from ..checkpoint import Family, case

OLMOE = Family(transformers.OlmoeConfig, transformers.OlmoeForCausalLM)

CASES = {
    "olmoe": case(
        OLMOE, seed=103, hidden_size=72, num_attention_heads=6, num_key_value_heads=6, num_hidden_layers=2,
        num_experts=9, num_experts_per_tok=4, intermediate_size=24, norm_topk_prob=False, rope_theta=10000.0,
        rms_norm_eps=1e-5, vocab_size=331, eos_token_id=2, pad_token_id=None, prompts=(1, 17, 40)),
    "olmoe_grouped_bf16": case(
        OLMOE, seed=104, hidden_size=64, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=2,
        num_experts=6, num_experts_per_tok=2, intermediate_size=20, norm_topk_prob=True, rope_theta=10000.0,
        rms_norm_eps=1e-5, vocab_size=300, eos_token_id=2, pad_token_id=None, dtype="bfloat16", new=True,
        prompts=(5, 40)),
}
