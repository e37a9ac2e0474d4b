"""gpt-oss."""

import transformers

from ..checkpoint import Family, case, yarn


def to_hub(config: dict, new: dict) -> None:
    config["layer_types"] = new["layer_types"]
    scaling = config["rope_scaling"]
    config["rope_scaling"] = {"rope_type": scaling.pop("type"), **scaling}


GPT_OSS = Family(transformers.GptOssConfig, transformers.GptOssForCausalLM, to_hub, fused_experts=True)

CASES = {
    "gpt_oss": case(  # a low limit, which many gates and ups meet
        GPT_OSS, seed=141, hidden_size=72, num_attention_heads=6, num_key_value_heads=2, head_dim=20,
        num_hidden_layers=2, num_local_experts=7, num_experts_per_tok=3, intermediate_size=24, sliding_window=9,
        swiglu_limit=1.25, vocab_size=320, eos_token_id=2, rope_parameters=yarn(150000.0, 8.0, truncate=False),
        prompts=(1, 17, 40)),
    "gpt_oss_mxfp4": case(
        GPT_OSS, seed=142, hidden_size=96, num_attention_heads=4, num_key_value_heads=4, head_dim=16,
        num_hidden_layers=3, num_local_experts=5, num_experts_per_tok=2, intermediate_size=32, sliding_window=16,
        vocab_size=300, eos_token_id=2, dtype="bfloat16", packed="mxfp4", shard="90KB",
        rope_parameters=yarn(150000.0, 8.0, truncate=False), prompts=(5, 40)),
}
