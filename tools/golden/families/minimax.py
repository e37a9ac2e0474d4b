"""MiniMax-M2."""

import transformers

from ..checkpoint import Family, case


def to_hub(config: dict, new: dict) -> None:
    config["rotary_dim"] = int(config["head_dim"] * new["rope_parameters"]["partial_rotary_factor"])
    config.update(qk_norm_type="per_layer", scoring_func="sigmoid", shared_intermediate_size=0, use_qk_norm=True,
                  use_routing_bias=True, attn_type_list=[1] * config["num_hidden_layers"])


MINIMAX = Family(transformers.MiniMaxM2Config, transformers.MiniMaxM2ForCausalLM, to_hub)

CASES = {
    "minimax_m2": case(
        MINIMAX, seed=351, hidden_size=72, num_attention_heads=6, num_key_value_heads=2, head_dim=20,
        num_hidden_layers=2, num_local_experts=9, num_experts_per_tok=4, intermediate_size=24, vocab_size=331,
        bos_token_id=None, eos_token_id=2,
        rope_parameters={"rope_type": "default", "rope_theta": 5000000.0, "partial_rotary_factor": 0.5},
        prompts=(1, 17, 40)),
}
