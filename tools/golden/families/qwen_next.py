"""Qwen3-Next and Qwen3.5-MoE: gated delta net in three layers of four."""

import transformers
from transformers.models.qwen3_5_moe import modeling_qwen3_5_moe
from transformers.models.qwen3_next import modeling_qwen3_next

from ..checkpoint import Family, case

# The recurrence, token by token, is the definition; the form in chunks rounds otherwise.
for modeling in (modeling_qwen3_next, modeling_qwen3_5_moe):
    modeling.torch_chunk_gated_delta_rule = modeling.torch_recurrent_gated_delta_rule


def next_to_hub(config: dict, new: dict) -> None:
    config["partial_rotary_factor"] = new["rope_parameters"]["partial_rotary_factor"]
    config["full_attention_interval"] = 4
    config["rope_scaling"] = None
    if "num_local_experts" in config:
        config["num_experts"] = config.pop("num_local_experts")


def with_pictures(max_position_embeddings: int, **text) -> transformers.Qwen3_5MoeConfig:
    """A text model inside one that sees pictures, whose other parts are as small as can be."""
    vision = dict(depth=1, hidden_size=8, intermediate_size=8, num_heads=2, patch_size=2, out_hidden_size=text["hidden_size"],
                  num_position_embeddings=4, in_channels=3, temporal_patch_size=2, spatial_merge_size=1)
    text["max_position_embeddings"] = max_position_embeddings
    del text["intermediate_size"]
    return transformers.Qwen3_5MoeConfig(text_config=text, vision_config=vision)


def text_alone(**fields) -> transformers.Qwen3_5MoeTextConfig:
    del fields["intermediate_size"]
    return transformers.Qwen3_5MoeTextConfig(**fields)


NEXT = Family(transformers.Qwen3NextConfig, transformers.Qwen3NextForCausalLM, next_to_hub)
QWEN35 = Family(with_pictures, transformers.Qwen3_5MoeForConditionalGeneration)
QWEN35_TEXT = Family(text_alone, transformers.Qwen3_5MoeForCausalLM)

CASES = {
    "qwen3_next": case(  # a dense layer; heads of values that are no multiple of a vector
        NEXT, seed=165, hidden_size=48, num_attention_heads=6, num_key_value_heads=2, head_dim=24, num_hidden_layers=4,
        linear_num_key_heads=2, linear_num_value_heads=6, linear_key_head_dim=20, linear_value_head_dim=12,
        linear_conv_kernel_dim=4, num_experts=7, num_experts_per_tok=3, moe_intermediate_size=20,
        shared_expert_intermediate_size=28, norm_topk_prob=True, mlp_only_layers=[1], vocab_size=307,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0, "partial_rotary_factor": 0.25},
        prompts=(1, 17, 40)),
    "qwen3_next_mtp": case(
        NEXT, seed=170, hidden_size=48, num_attention_heads=4, num_key_value_heads=2, head_dim=16, num_hidden_layers=4,
        linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=12, linear_value_head_dim=12,
        linear_conv_kernel_dim=4, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=16,
        shared_expert_intermediate_size=20, norm_topk_prob=True, vocab_size=300, drafts=True, bf16_calc_diff=2e-3,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0, "partial_rotary_factor": 0.25},
        prompts=(1, 17, 40)),
    "qwen3_next_bf16": case(
        NEXT, seed=162, hidden_size=64, num_attention_heads=4, num_key_value_heads=1, head_dim=32, num_hidden_layers=4,
        linear_num_key_heads=3, linear_num_value_heads=3, linear_key_head_dim=16, linear_value_head_dim=32,
        linear_conv_kernel_dim=3, num_experts=5, num_experts_per_tok=2, moe_intermediate_size=20,
        shared_expert_intermediate_size=28, norm_topk_prob=False, vocab_size=300, dtype="bfloat16", new=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        prompts=(5, 40)),
    "qwen3_5_moe_pictures_bf16": case(  # as published: a text model inside
        QWEN35, seed=163, hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=32, num_hidden_layers=4,
        linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=16, linear_value_head_dim=16,
        linear_conv_kernel_dim=4, num_experts=7, num_experts_per_tok=2, moe_intermediate_size=20,
        shared_expert_intermediate_size=36, vocab_size=300, dtype="bfloat16", new=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000000.0, "partial_rotary_factor": 0.25,
                         "mrope_section": [2, 1, 1], "mrope_interleaved": True}, prompts=(5, 40)),
    "qwen3_5_moe_mtp": case(
        QWEN35_TEXT, seed=167, hidden_size=48, num_attention_heads=4, num_key_value_heads=1, head_dim=16,
        num_hidden_layers=2, layer_types=["linear_attention", "full_attention"],
        linear_num_key_heads=1, linear_num_value_heads=2, linear_key_head_dim=16, linear_value_head_dim=12,
        linear_conv_kernel_dim=4, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=16,
        shared_expert_intermediate_size=20, vocab_size=300, new=True, stacked=True, drafts=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25,
                         "mrope_section": [1, 1, 0], "mrope_interleaved": True}, prompts=(1, 17, 40)),
    "qwen3_5_moe_text": case(
        QWEN35_TEXT, seed=164, hidden_size=56, num_attention_heads=3, num_key_value_heads=1, head_dim=24,
        num_hidden_layers=3, layer_types=["linear_attention", "full_attention", "linear_attention"],
        linear_num_key_heads=1, linear_num_value_heads=3, linear_key_head_dim=24, linear_value_head_dim=20,
        linear_conv_kernel_dim=4, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=24,
        shared_expert_intermediate_size=20, vocab_size=307, new=True, stacked=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25,
                         "mrope_section": [1, 1, 1], "mrope_interleaved": True}, prompts=(1, 17, 40)),
}
