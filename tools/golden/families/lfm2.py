"""LFM2-MoE: short convolutions beside attention."""

import transformers

from ..checkpoint import Family, case


def to_hub(config: dict, new: dict) -> None:
    config["layer_types"] = new["layer_types"]


LFM2 = Family(transformers.Lfm2MoeConfig, transformers.Lfm2MoeForCausalLM, to_hub)

CASES = {
    "lfm2_moe": case(
        LFM2, seed=140, hidden_size=72, num_attention_heads=6, num_key_value_heads=2, num_hidden_layers=4,
        num_dense_layers=1, num_experts=9, num_experts_per_tok=3, moe_intermediate_size=24, conv_L_cache=3,
        layer_types=["conv", "full_attention", "conv", "conv"], vocab_size=331, bos_token_id=None, eos_token_id=2,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}, prompts=(1, 17, 40)),
}
