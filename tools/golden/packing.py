"""Checkpoints whose weights are packed as their families publish them."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from .files import write_json

FP8_BLOCK = 128


def pack_fp8(weight: torch.Tensor):
    """Codes, a scale for each block, and the numbers that the two stand for."""
    n, k = weight.shape
    blocks = [-(-n // FP8_BLOCK), -(-k // FP8_BLOCK)]
    padded = torch.zeros(blocks[0] * FP8_BLOCK, blocks[1] * FP8_BLOCK)
    padded[:n, :k] = weight.float()
    padded = padded.view(blocks[0], FP8_BLOCK, blocks[1], FP8_BLOCK)
    scale = padded.abs().amax(dim=(1, 3)) / 448.0
    codes = (padded / scale[:, None, :, None]).to(torch.float8_e4m3fn)
    meant = codes.float() * scale[:, None, :, None]
    shape = (blocks[0] * FP8_BLOCK, blocks[1] * FP8_BLOCK)
    return (codes.view(shape)[:n, :k].contiguous(), scale, meant.reshape(shape)[:n, :k].contiguous())


def store_as_fp8(path: Path, plain: Path) -> None:
    """Packs the checkpoint at `path` as DeepSeek publishes its own; `plain`: a copy with what the packed
    numbers stand for, in f32."""
    file = path / "model.safetensors"
    packed, meant = {}, {}
    for name, tensor in load_file(file).items():
        if tensor.dim() == 2 and "_proj" in name:
            packed[name], packed[name + "_scale_inv"], meant[name] = pack_fp8(tensor)
        else:
            packed[name], meant[name] = tensor, tensor.float()
    shutil.copytree(path, plain)
    save_file(meant, plain / "model.safetensors", metadata={"format": "pt"})
    save_file(packed, file, metadata={"format": "pt"})
    file.chmod(0o644)
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
                                     "weight_block_size": [FP8_BLOCK, FP8_BLOCK]}
    write_json(path / "config.json", dict(sorted(config.items())))


MXFP4_GROUP = 32
MXFP4_VALUES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def pack_mxfp4(weight: torch.Tensor):
    """[E, in, out] as blocks [E, out, in / 32, 16] and scales [E, out, in / 32], and the numbers that they
    stand for."""
    groups = weight.float().transpose(1, 2).contiguous().unflatten(-1, (-1, MXFP4_GROUP))
    exponent = torch.floor(torch.log2(groups.abs().amax(-1, keepdim=True))) - 2  # the greatest is below 8
    scaled = torch.ldexp(groups, -exponent)
    code = (scaled.abs()[..., None] - MXFP4_VALUES).abs().argmin(-1)
    meant = torch.ldexp(MXFP4_VALUES[code] * scaled.sign(), exponent)
    code = (code + 8 * (scaled < 0)).to(torch.uint8)
    blocks = code[..., ::2] | code[..., 1::2] << 4
    scales = (exponent[..., 0] + 127).to(torch.uint8)
    return blocks.contiguous(), scales, meant.flatten(-2).transpose(1, 2).contiguous()


def store_as_mxfp4(path: Path, plain: Path) -> None:
    """Packs the checkpoint at `path` as gpt-oss is published; `plain`: a copy with what the packed numbers stand
    for, in f32."""
    shutil.copytree(path, plain)
    index = json.loads((path / "model.safetensors.index.json").read_text())
    index["weight_map"] = {}
    for file in path.glob("model*.safetensors"):
        packed, meant = {}, {}
        for name, tensor in load_file(file).items():
            if tensor.dim() == 3:
                packed[name + "_blocks"], packed[name + "_scales"], meant[name] = pack_mxfp4(tensor)
            else:
                packed[name], meant[name] = tensor, tensor.float()
        index["weight_map"].update({name: file.name for name in packed})
        save_file(meant, plain / file.name, metadata={"format": "pt"})
        save_file(packed, file, metadata={"format": "pt"})
        file.chmod(0o644)
    index["weight_map"] = dict(sorted(index["weight_map"].items()))
    write_json(path / "model.safetensors.index.json", index)
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {"modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router",
                                                                "model.embed_tokens", "lm_head"],
                                     "quant_method": "mxfp4"}
    config.pop("torch_dtype")
    write_json(path / "config.json", dict(sorted(config.items())))


STORES = {"fp8": store_as_fp8, "mxfp4": store_as_mxfp4}
