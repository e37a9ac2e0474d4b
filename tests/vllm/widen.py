#!/usr/bin/env python3
"""Writes a copy of assets/demo-moe that tensor parallelism can cut: hidden 640 instead of 160, 20 heads of 5.

    build/venv-vllm/bin/python tests/vllm/widen.py DIR

All that is new is zeros. Norms see a mean over four times as many columns, so their outputs are twice as large:
their weights are halved and eps divided by four, which no rounding touches. So it computes what the model computes.
"""

import json
import pathlib
import shutil
import sys

import torch
from safetensors.torch import load_file, save_file

FACTOR = 4  # a power of four, whose root is a power of two
SOURCE = pathlib.Path(__file__).resolve().parents[2] / "assets/demo-moe"


def widened(name, tensor, hidden):
    wide = hidden * FACTOR
    if name.endswith("norm.weight"):
        tensor = tensor / FACTOR**0.5
    rows = "self_attn" in name or name.endswith("down_proj.weight") or tensor.dim() == 1
    shape = [wide if size == hidden and (axis == tensor.dim() - 1 or rows) else size
             for axis, size in enumerate(tensor.shape)]
    out = torch.zeros(shape, dtype=tensor.dtype)
    out[tuple(slice(size) for size in tensor.shape)] = tensor
    return out


def widen(target):
    target = pathlib.Path(target)
    target.mkdir(parents=True, exist_ok=True)
    config = json.loads((SOURCE / "config.json").read_text())
    tensors = load_file(SOURCE / "model.safetensors")
    save_file({name: widened(name, tensor, config["hidden_size"]) for name, tensor in tensors.items()},
              target / "model.safetensors", metadata={"format": "pt"})
    for name in ("hidden_size", "num_attention_heads", "num_key_value_heads"):
        config[name] *= FACTOR
    config["rms_norm_eps"] /= FACTOR
    (target / "config.json").write_text(json.dumps(config, indent=2))
    for file in SOURCE.iterdir():
        if file.name.startswith(("tokenizer", "generation_config", "chat_template")):
            shutil.copy(file, target)


if __name__ == "__main__":
    widen(sys.argv[1])
