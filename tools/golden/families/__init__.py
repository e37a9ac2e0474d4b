"""The checkpoints of all families, one row each. Between them: hidden sizes that are no multiple of 64, odd
head counts, E that 2, 3 and 4 ranks do not divide, every storage type, both forms of config.json, dense
layers among the sparse ones."""

from . import deepseek, glm4, gpt_oss, llama4, mixtral, olmoe, qwen

CASES = {**qwen.CASES, **mixtral.CASES, **olmoe.CASES, **deepseek.CASES, **llama4.CASES, **glm4.CASES,
         **gpt_oss.CASES}
