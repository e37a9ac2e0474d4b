"""A layer that predicts further tokens behind those of a checkpoint, and what transformers' own layer drafts with it."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers.modeling_layers import MtpModel

from .checkpoint import randomise
from .files import write_json

DRAFT = 3  # tokens of a draft


# What lies beside the model instead of behind its last layer.
BESIDE = {"enorm.": "pre_fc_norm_embedding.", "hnorm.": "pre_fc_norm_hidden.", "eh_proj.": "fc.", "post_norm.": "norm."}


def tensors_of(layer, place: str, stacked: bool) -> dict[str, torch.Tensor]:
    """As published checkpoints name and cut them."""
    tensors = {}
    for name, value in layer.state_dict().items():
        value = value.contiguous()
        part = name.partition(".")[0] + "."
        if place.startswith("mtp.") and part in BESIDE:
            tensors["mtp." + name.replace(part, BESIDE[part])] = value
        elif stacked and "experts." in name:
            tensors[f"{place}.{name.removeprefix('mtp_block.')}"] = value
        elif name.endswith("experts.gate_up_proj"):
            for expert, rows in enumerate(value):
                gate, up = rows.chunk(2)
                tensors[f"{place}.mlp.experts.{expert}.gate_proj.weight"] = gate.contiguous()
                tensors[f"{place}.mlp.experts.{expert}.up_proj.weight"] = up.contiguous()
        elif name.endswith("experts.down_proj"):
            for expert, rows in enumerate(value):
                tensors[f"{place}.mlp.experts.{expert}.down_proj.weight"] = rows.contiguous()
        else:
            name = name.removeprefix("mtp_block.").replace("post_norm.", "shared_head.norm.")
            tensors[f"{place}.{name}"] = value
    return tensors


def drafts_behind(model, layer, head, ids: torch.Tensor, hidden: torch.Tensor) -> tuple[list[int], float]:
    """What the layer drafts behind `ids`, whose last one the model has not run, each token from the one before it; and
    by how much of their range the logits would have to move for another token."""
    rows, drafted, margin = hidden[:, :ids.shape[1] - 1], [], float("inf")
    for _ in range(DRAFT):
        known = ids[:, 1:]
        positions = torch.arange(1, ids.shape[1])[None]
        n = known.shape[1]
        mask = torch.full((n, n), torch.finfo(torch.float32).min).triu(1)[None, None]
        embeds = model.get_input_embeddings()(known)
        angles = model.get_decoder().rotary_emb(embeds, position_ids=positions)
        out = layer(embeds, rows, position_embeddings=angles, attention_mask=mask, position_ids=positions, cache=None)
        logits = head(out[0, -1]).float()
        best = logits.topk(2).values
        margin = min(margin, float((best[0] - best[1]) / (logits.max() - logits.min())))
        drafted.append(int(logits.argmax()))
        ids = torch.cat([ids, torch.tensor([[drafted[-1]]])], dim=1)
        rows = torch.cat([rows, out[:, -1:]], dim=1)
    return drafted, margin


def add_draft_layer(model, path: Path, seed: int) -> None:
    """Behind golden_model(): golden.json gets `drafts`, for each number of a prompt's and answer's tokens that have
    run, from one on, where no logit is nearly as great as the one chosen; none elsewhere."""
    file = path / "model.safetensors"
    tensors = load_file(file)
    dtype = tensors["model.embed_tokens.weight"].dtype
    beside = model.config.model_type.startswith("qwen3")
    if beside:
        model.config.num_mtp_layers, model.config.mtp_layer_types = 1, ["full_attention"]
    layer = MtpModel(model, 1).layers[0]
    randomise(layer, torch.Generator().manual_seed(seed + 2000), choice_bias=-2.0)
    layer = layer.to(dtype).float().eval()
    place = "mtp.layers.0" if beside else f"model.layers.{model.config.num_hidden_layers}"
    more = tensors_of(layer, place, any(name.endswith("experts.down_proj") for name in tensors))
    assert any("experts." in name for name in more), "a layer without experts"
    save_file({**tensors, **{name: value.to(dtype) for name, value in more.items()}}, file)
    file.chmod(0o644)
    config = json.loads((path / "config.json").read_text())
    stated = {} if model.config.model_type == "qwen3_next" else {"mtp_num_hidden_layers" if beside else "num_nextn_predict_layers": 1}
    write_json(path / "config.json", {**config, **stated})

    golden = json.loads((path / "golden.json").read_text())
    kept = 0
    for prompt in golden["prompts"]:
        ids = torch.tensor([prompt["input_ids"] + prompt["greedy"]])
        hidden = model.get_decoder()(ids).last_hidden_state
        prompt["drafts"] = [None]
        for length in range(1, ids.shape[1]):
            drafted, margin = drafts_behind(model, layer, model.lm_head, ids[:, :length + 1], hidden)
            prompt["drafts"].append(drafted if margin > 1e-3 else None)
        kept += sum(d is not None for d in prompt["drafts"])
    write_json(path / "golden.json", golden)
    print(f"{path.name}: {kept} drafts")
