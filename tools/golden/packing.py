"""Checkpoints packed as their families publish them."""

import json
import shutil
import tempfile
from collections.abc import Callable
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


def pack_wna16(weight: torch.Tensor, group: int, symmetric: bool):
    """compressed-tensors' pack-quantized form of 4 bits, and the numbers that it stands for."""
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    groups = weight.float().unflatten(-1, (-1, group))
    if symmetric:
        scale = groups.abs().amax(-1, keepdim=True) / 7.5
        zero = torch.zeros_like(scale)
    else:
        low, high = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True).clamp(min=0)
        scale = (high - low) / 15
        zero = (-8 - low / scale).round().clamp(-8, 7)
    scale = scale.bfloat16().float()
    codes = (groups / scale + zero).round().clamp(-8, 7)
    meant = ((codes - zero) * scale).flatten(-2)
    parts = {"_packed": pack_to_int32(codes.flatten(-2).to(torch.int8), 4), "_scale": scale[..., 0].bfloat16(),
             "_shape": torch.tensor(weight.shape)}
    if not symmetric:
        parts["_zero_point"] = pack_to_int32(zero[..., 0].to(torch.int8), 4, packed_dim=0)
    return parts, meant


def store_as_wna16(path: Path, plain: Path, symmetric: bool = False) -> None:
    """Packs the experts of the checkpoint at `path` as llm-compressor does; `plain`: a copy with what they stand for."""
    file = path / "model.safetensors"
    packed, meant = {}, {}
    for name, tensor in load_file(file).items():
        meant[name] = tensor.float()
        if ".experts." not in name:
            packed[name] = tensor
            continue
        parts, meant[name] = pack_wna16(tensor, 32, symmetric)
        packed.update({name + suffix: part.contiguous() for suffix, part in parts.items()})
    shutil.copytree(path, plain)
    save_file(meant, plain / "model.safetensors", metadata={"format": "pt"})
    save_file(packed, file, metadata={"format": "pt"})
    file.chmod(0o644)
    config = json.loads((path / "config.json").read_text())
    weights = {"num_bits": 4, "type": "int", "symmetric": symmetric, "strategy": "group", "group_size": 32, "actorder": None}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head", "re:.*self_attn.*"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}}}
    write_json(path / "config.json", dict(sorted(config.items())))


def store_as_wna16_inside_pictures(path: Path, plain: Path) -> None:
    """As Kimi-K2.5 is published: both."""
    store_as_wna16(path, plain, symmetric=True)
    with tempfile.TemporaryDirectory() as unused:
        store_inside_pictures(path, Path(unused) / "plain")


def pack_words(codes: torch.Tensor, order=range(8)) -> torch.Tensor:
    """Eight codes of 4 bits to a word, along the last dimension; `order`: whose code comes first."""
    eights = codes.to(torch.int64).unflatten(-1, (-1, 8))[..., list(order)]
    word = (eights << torch.arange(0, 32, 4)).sum(-1)
    return torch.where(word >= 2 ** 31, word - 2 ** 32, word).to(torch.int32).contiguous()


def quantise_columns(weight: torch.Tensor, group_of: torch.Tensor):
    """[n, k] as codes [k, n], zero points and scales [groups, n], and the numbers that they stand for."""
    turned = weight.float().T.contiguous()
    codes, zeros, scales, meant = torch.zeros_like(turned), [], [], torch.zeros_like(turned)
    for g in range(int(group_of.max()) + 1):
        part = turned[group_of == g]
        low, high = part.amin(0).clamp(max=0), part.amax(0).clamp(min=0)
        scale = ((high - low) / 15).half().float()
        zero = (-low / scale).round().clamp(1, 15)
        code = (part / scale + zero).round().clamp(0, 15)
        codes[group_of == g], meant[group_of == g] = code, (code - zero) * scale
        zeros.append(zero)
        scales.append(scale.half())
    return codes, torch.stack(zeros), torch.stack(scales), meant.T.contiguous()


def store_in_words(path: Path, plain: Path, pack: Callable, quantization: dict) -> None:
    """Packs all linear layers but router and head; `plain`: a copy with what they stand for."""
    file = path / "model.safetensors"
    packed, meant = {}, {}
    for name, tensor in load_file(file).items():
        if tensor.dim() == 2 and "_proj" in name:
            parts, meant[name] = pack(tensor)
            packed.update({name.removesuffix("weight") + part: t for part, t in parts.items()})
        else:
            packed[name], meant[name] = tensor, tensor.float()
    shutil.copytree(path, plain)
    save_file(meant, plain / "model.safetensors", metadata={"format": "pt"})
    save_file(packed, file, metadata={"format": "pt"})
    file.chmod(0o644)
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = quantization
    write_json(path / "config.json", dict(sorted(config.items())))


WORDS_GROUP = 16


def store_as_gptq(path: Path, plain: Path) -> None:
    """With act-order: groups are of columns anywhere, here every so-manieth."""
    def pack(weight):
        columns = torch.arange(weight.shape[1])
        group_of = columns % (weight.shape[1] // WORDS_GROUP)
        codes, zeros, scales, meant = quantise_columns(weight, group_of)
        return {"qweight": pack_words(codes.T).T.contiguous(), "qzeros": pack_words(zeros - 1), "scales": scales,
                "g_idx": group_of.to(torch.int32)}, meant

    store_in_words(path, plain, pack, {"quant_method": "gptq", "bits": 4, "group_size": WORDS_GROUP, "desc_act": True,
                                       "sym": False, "checkpoint_format": "gptq"})


def store_as_awq(path: Path, plain: Path) -> None:
    def pack(weight):
        codes, zeros, scales, meant = quantise_columns(weight, torch.arange(weight.shape[1]) // WORDS_GROUP)
        order = [0, 2, 4, 6, 1, 3, 5, 7]
        return {"qweight": pack_words(codes, order), "qzeros": pack_words(zeros, order), "scales": scales}, meant

    store_in_words(path, plain, pack, {"quant_method": "awq", "bits": 4, "group_size": WORDS_GROUP, "zero_point": True,
                                       "version": "gemm", "modules_to_not_convert": None})


def store_inside_pictures(path: Path, plain: Path) -> None:
    """Makes the checkpoint at `path` the text model inside one that sees pictures, as Kimi-K2.5 is published, without what
    sees; `plain`: the text model by itself. (transformers 5.24 gives the layers another name when it saves one.)"""
    shutil.copytree(path, plain)
    file = path / "model.safetensors"
    save_file({"language_model." + name: tensor for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    file.chmod(0o644)
    text = json.loads((path / "config.json").read_text())
    text["model_type"] = "kimi_k2"
    config = {"architectures": ["KimiK25ForConditionalGeneration"], "model_type": "kimi_k25", "text_config": text,
              "tie_word_embeddings": False, "torch_dtype": text.get("torch_dtype")}
    if "quantization_config" in text:
        config["quantization_config"] = text.pop("quantization_config")
    write_json(path / "config.json", config)


STORES = {"fp8": store_as_fp8, "mxfp4": store_as_mxfp4, "wna16": store_as_wna16, "gptq": store_as_gptq, "awq": store_as_awq,
          "wna16_pictures": store_as_wna16_inside_pictures}
