"""Llama 4, its text model alone and inside one that sees pictures."""

import transformers

from ..checkpoint import Family, case


def with_pictures(max_position_embeddings: int, **text) -> transformers.Llama4Config:
    """A text model inside one that sees pictures, whose other parts are as small as can be."""
    vision = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vision_output_dim=8,
                  projector_input_dim=8, projector_output_dim=8, image_size=8, patch_size=4, num_channels=3)
    text["max_position_embeddings"] = max_position_embeddings
    return transformers.Llama4Config(text_config=text, vision_config=vision)


LLAMA4_TEXT = Family(transformers.Llama4TextConfig, transformers.Llama4ForCausalLM, fused_experts=True)
LLAMA4 = Family(with_pictures, transformers.Llama4ForConditionalGeneration, fused_experts=True)

CASES = {
    "llama4_text": case(  # prompts longer than a chunk; the routing of two experts scales a row twice
        LLAMA4_TEXT, seed=141, hidden_size=72, num_attention_heads=6, num_key_value_heads=2, head_dim=20,
        num_hidden_layers=4, num_local_experts=7, num_experts_per_tok=2, intermediate_size=24,
        intermediate_size_mlp=40, interleave_moe_layer_step=2, no_rope_layer_interval=3, attention_chunk_size=7,
        floor_scale=6, attn_scale=0.3, use_qk_norm=True, vocab_size=331, eos_token_id=2,
        rope_parameters={"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 64}, prompts=(1, 17, 40)),
    "llama4_pictures_bf16": case(  # as published: a text model inside, a rotary scaling without a transition
        LLAMA4, seed=142, hidden_size=64, num_attention_heads=4, num_key_value_heads=1, head_dim=16,
        num_hidden_layers=3, num_local_experts=5, num_experts_per_tok=1, intermediate_size=28,
        intermediate_size_mlp=36, moe_layers=[0, 2], no_rope_layers=[1, 0, 1], attention_chunk_size=16,
        floor_scale=8, attn_scale=0.1, use_qk_norm=False, attention_bias=True, vocab_size=300, eos_token_id=2,
        rope_parameters={"rope_type": "llama3", "rope_theta": 10000.0, "factor": 16.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 1.0, "original_max_position_embeddings": 64},
        dtype="bfloat16", new=True, prompts=(5, 40)),
}
