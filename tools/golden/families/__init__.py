"""The checkpoints of all families, one row each. Between them: hidden sizes that are no multiple of 64, odd
head counts, E that 2, 3 and 4 ranks do not divide, every storage type, both forms of config.json, dense
layers among the sparse ones."""

from . import deepseek, dots, ernie, glm4, gpt_oss, hunyuan, lfm2, llama4, minimax, mistral, mixtral, olmoe, qwen, qwen_next

CASES = {**qwen.CASES, **mixtral.CASES, **olmoe.CASES, **deepseek.CASES, **llama4.CASES, **glm4.CASES,
         **gpt_oss.CASES, **minimax.CASES, **dots.CASES, **ernie.CASES, **hunyuan.CASES, **mistral.CASES,
         **qwen_next.CASES, **lfm2.CASES}
