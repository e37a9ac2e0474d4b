"""Hunyuan-A13B."""

import transformers

from ..checkpoint import Family, case


def to_hub(config: dict, new: dict) -> None:
    layers = config["num_hidden_layers"]
    config.update(moe_topk=[config["moe_topk"]] * layers, num_shared_expert=[1] * layers, use_qk_norm=True, use_cla=False,
                  moe_intermediate_size=[config["intermediate_size"]] * layers, use_mixed_mlp_moe=True)


HUNYUAN = Family(transformers.HunYuanMoEV1Config, transformers.HunYuanMoEV1ForCausalLM, to_hub)

CASES = {
    "hunyuan_v1_moe": case(
        HUNYUAN, seed=154, hidden_size=72, num_attention_heads=6, num_key_value_heads=2, head_dim=20, num_hidden_layers=2,
        num_experts=7, moe_topk=3, intermediate_size=28, vocab_size=320, bos_token_id=None, eos_token_id=2,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "alpha": 50.0, "factor": 1.0},
        prompts=(1, 17, 40)),
}
