"""Random checkpoints of a family, in the form that published ones have."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file

from .files import write_json

ROUTERS = ("mlp.gate.weight", "mlp.gate.wg.weight", "mlp.router.weight", "feed_forward.router.weight", "feed_forward.gate.weight")


def nothing_more(_config: dict, _new: dict) -> None:
    """For families whose config.json only differs as all do."""


@dataclass(frozen=True)
class Family:
    config: Callable  # transformers' class, or what makes one of the fields
    model: type
    # What else published checkpoints have in config.json, given what all have in common and the file as
    # this transformers writes it.
    to_hub: Callable[[dict, dict], None] = nothing_more
    fused_experts: bool = False  # published with all experts of a layer in one tensor, or never split by transformers


@dataclass(frozen=True)
class Case:
    family: Family
    seed: int
    prompts: tuple[int, ...]  # their lengths
    fields: dict  # of the family's config
    dtype: str = "float32"
    shard: str = "1GB"
    new: bool = False  # config.json as this transformers writes it
    packed: str | None = None  # a name in packing.STORES
    model_type: str | None = None  # unknown to transformers, which has the same graph under another name
    choice_bias: float = 0.0
    bf16_calc_diff: float = 5e-4  # how far bf16 may be off; more where it chooses other positions
    drafts: bool = False  # with a layer that predicts further tokens
    stacked: bool = False  # all experts of a layer in one tensor, where the family is published otherwise


def case(family: Family, *, seed: int, prompts: tuple[int, ...], **more) -> Case:
    """Keywords that are none of Case's own are fields of the family's config."""
    own = {key: more.pop(key) for key in list(more) if key in Case.__dataclass_fields__}
    return Case(family, seed, prompts, more, **own)


def yarn(theta: float, factor: float, **more) -> dict:
    """Positions stretched from 64 to 512, in the form of transformers 5."""
    return {"rope_type": "yarn", "rope_theta": theta, "factor": factor, "beta_fast": 32.0, "beta_slow": 1.0,
            "original_max_position_embeddings": 64, **more}


def to_hub_config(new: dict, family: Family) -> dict:
    """config.json as published checkpoints have it; transformers 5 renamed several of its fields."""
    config = dict(new)
    rope = config.pop("rope_parameters")
    assert rope["rope_type"] in ("default", "yarn", "llama3", "dynamic")
    config["rope_theta"] = rope.pop("rope_theta")
    if rope["rope_type"] == "llama3":
        config["rope_scaling"] = rope
    if rope["rope_type"] in ("yarn", "dynamic"):
        config["rope_scaling"] = {"type": rope.pop("rope_type"), **rope}
    config["torch_dtype"] = config.pop("dtype")
    for key in ("layer_types", "moe_layers", "pad_token_id", "qkv_bias"):
        config.pop(key, None)
    family.to_hub(config, new)
    return dict(sorted(config.items()))


def save_checkpoint(model, path: Path, family: Family, shard: str = "1GB", hub_config: bool = True,
                    stacked: bool = False) -> None:
    """save_pretrained, with what published checkpoints look like made certain."""
    model.save_pretrained(path, max_shard_size=shard, save_original_format=not stacked)
    names = set()
    for file in path.glob("model*.safetensors"):
        names |= set(load_file(file))
        file.chmod(0o644)  # safetensors writes them for the owner alone
    fused = [n for n in names if "gate_up_proj" in n or n.endswith("experts.down_proj")]
    if fused and not (family.fused_experts or stacked):  # this transformers splits them; do not let another version pass unnoticed
        raise SystemExit(f"{path}: transformers {transformers.__version__} saved fused experts: {fused[0]}")
    if hub_config:
        config = json.loads((path / "config.json").read_text())
        write_json(path / "config.json", to_hub_config(config, family))


def randomise(model, gen: torch.Generator, choice_bias: float = 0.0) -> None:
    """Fresh values everywhere: transformers starts biases at 0 and norms at 1, which hides mistakes."""
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=gen)
        if name.endswith("norm.weight"):
            value = p.data.mean() + 0.2 * noise  # some multiply by 1 + weight, and start at 0
        elif name.endswith("bias"):
            value = 0.4 * noise
        elif name.endswith("A_log"):
            value = noise - 2  # some heads forget within a few tokens, some hardly at all
        elif "embed_tokens" in name:
            value = 0.5 * noise
        elif name.endswith(ROUTERS):
            value = noise * 2.0 / p.shape[-1] ** 0.5  # routing varies, yet is not one-hot
        else:
            inputs = p.shape[-2] if p.dim() == 3 else p.shape[-1]  # experts in one tensor: [E, in, out]
            value = noise * 1.2 / inputs ** 0.5
        p.data.copy_(value)
    for name, b in model.named_buffers():
        if name.endswith(("e_score_correction_bias", "expert_bias")):
            b.copy_(choice_bias + 0.1 * torch.randn(b.shape, generator=gen))


def build(case: Case):
    fields = {"intermediate_size": case.fields["hidden_size"] + 12, **case.fields}
    model = case.family.model(case.family.config(max_position_embeddings=512, **fields))
    randomise(model, torch.Generator().manual_seed(case.seed), case.choice_bias)
    return model.to(getattr(torch, case.dtype))
