"""A checkpoint with transformers' own answers: logits of prompts that rounding hardly moves, and what greedy
decoding makes of them."""

import json
import shutil
import tempfile
from pathlib import Path

import torch
import transformers
from torch.overrides import TorchFunctionMode
from safetensors.torch import save_file

from .bpe import QWEN_SPLIT, SPECIAL, byte_level_bpe, save_tokenizer
from .checkpoint import ROUTERS, Case, build, save_checkpoint
from .draft_layer import add_draft_layer
from .files import write_json
from .packing import STORES

GREEDY = 32


def choice_gap(gate, block, logits: torch.Tensor, k: int) -> torch.Tensor:
    """By how much what the router's choice is made of would have to move for another choice."""
    keys = logits
    bias = getattr(gate, "e_score_correction_bias", getattr(block, "expert_bias", None))
    if hasattr(gate, "moe_statics"):
        keys = logits.softmax(-1) + gate.moe_statics.e_score_correction_bias.squeeze()
    elif bias is not None:
        keys = logits.sigmoid() + bias
    gap = torch.full(keys.shape[:-1], float("inf"))
    groups, chosen = getattr(gate, "num_group", None) or 1, getattr(gate, "topk_group", None) or 1
    if groups > chosen:
        split = keys.unflatten(-1, (groups, -1))
        two = hasattr(gate, "e_score_correction_bias")
        scores = split.topk(2, dim=-1).values.sum(-1) if two else split.amax(-1)
        best = scores.topk(chosen + 1, dim=-1)
        gap = best.values[..., chosen - 1] - best.values[..., chosen]
        mask = torch.zeros_like(scores).scatter_(-1, best.indices[..., :chosen], 1.0)
        keys = split.masked_fill(mask[..., None] == 0, float("-inf")).flatten(-2)
    best = keys.topk(k + 1, dim=-1).values
    return torch.minimum(gap, best[..., k - 1] - best[..., k])


class IndexerGaps(TorchFunctionMode):
    """Runs indexers; `gaps` has by how much the scores would have to move for another choice of positions. Scores are
    sums of a few products, which rounding moves less than it moves what routers choose by: they count thirtyfold."""

    def __init__(self):
        super().__init__()
        self.gaps = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.topk:
            scores, k = args[0], args[1]
            if k < scores.shape[-1]:
                best = scores.sort(dim=-1, descending=True).values
                gap = torch.where(best[..., k] < -1e30, float("inf"), best[..., k - 1] - best[..., k])
                self.gaps.append(30 * gap.amin(dim=-1))
        return func(*args, **(kwargs or {}))

    def run(self, forward):
        def run(*args, **kwargs):
            with self:
                return forward(*args, **kwargs)
        return run


def router_gap(model, ids: torch.Tensor) -> torch.Tensor:
    """Per prompt: the smallest distance from a choice, of experts or of positions, to another one."""
    k, gaps, hooks = model.config.get_text_config().num_experts_per_tok, [], []
    k = k[0] if isinstance(k, list) else k  # one for each layer, all the same

    def hook(gate, _inputs, output):
        logits = output[1] if type(gate).__name__ == "Llama4Router" else output[0]
        gaps.append(choice_gap(gate, blocks[gate], logits.float().reshape(*ids.shape, -1), k).amin(dim=-1))

    indexers, blocks = IndexerGaps(), {}
    for name, module in model.named_modules():
        if name.endswith("self_attn.indexer"):
            module.forward = indexers.run(type(module).forward.__get__(module))
        if name.endswith(tuple(r.removesuffix(".weight").removesuffix(".wg") for r in ROUTERS)):
            hooks.append(module.register_forward_hook(hook))
            blocks[module] = model.get_submodule(name.rpartition(".")[0])
    model(ids)
    for h in hooks:
        h.remove()
    for name, module in model.named_modules():
        if name.endswith("self_attn.indexer"):
            del module.forward
    return torch.stack(gaps + indexers.gaps).amin(dim=0)


def calc_diff(x: torch.Tensor, y: torch.Tensor) -> float:
    x, y = x.double(), y.double()
    return float(1 - 2 * (x * y).sum() / (x * x + y * y).sum())


def greedy(model, ids: torch.Tensor):
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=GREEDY, do_sample=False,
                         eos_token_id=None, pad_token_id=0, output_logits=True, return_dict_in_generate=True)
    return out.sequences[0, ids.shape[1]:], torch.cat(out.logits).float()


def pick_prompt(model, half, length: int, gen: torch.Generator, banned: set[int], most_diff: float) -> dict:
    """The prompt whose answer least depends on rounding: clear routing, no near ties, varied tokens."""
    ids = torch.randint(0, model.config.get_text_config().vocab_size, (400, length), generator=gen)
    gap = router_gap(model, ids)
    best = None
    for i in gap.argsort(descending=True)[:24].tolist():
        tokens, rows = greedy(model, ids[i:i + 1])
        full = torch.cat([ids[i], tokens])[None]
        logits = model(full).logits[0].float()
        span = float(logits.max() - logits.min())
        top = rows.topk(2, dim=-1).values
        margin = float((top[:, 0] - top[:, 1]).min()) / span
        rest_gap = float(router_gap(model, full))
        cached = float((logits[length - 1:-1] - rows).abs().max()) / span
        diff = calc_diff(logits[:length], half(ids[i:i + 1]).logits[0].float())
        if margin < 1e-3 or rest_gap < 1e-3 or diff > most_diff or banned & set(tokens.tolist()):
            continue
        assert cached < 1e-5, cached  # with and without KV cache: the same answer
        found = dict(input_ids=ids[i].tolist(), greedy=tokens.tolist(), margin=margin, router_gap=float(gap[i]),
                     bf16_calc_diff=diff, logits=logits[:length], rows=rows, distinct=len(set(tokens.tolist())))
        if best is None or found["distinct"] > best["distinct"]:
            best = found
        if best["distinct"] >= 16:
            break
    if best is None:
        raise SystemExit(f"no prompt of length {length} is robust enough")
    return best


def golden_model(name: str, case: Case, out: Path) -> None:
    path = out / name
    shutil.rmtree(path, ignore_errors=True)
    tok = byte_level_bpe(QWEN_SPLIT, True, 290)
    save_checkpoint(build(case), path, case.family, case.shard, hub_config=not case.new, stacked=case.stacked)
    save_tokenizer(tok, path, string_merges=not case.new)

    answers = path  # what transformers is to answer for
    temporary = tempfile.TemporaryDirectory()
    if case.packed:
        answers = Path(temporary.name) / name
        STORES[case.packed](path, answers)
    load = dict(attn_implementation="eager", experts_implementation="eager")
    model, info = case.family.model.from_pretrained(answers, dtype=torch.float32, output_loading_info=True, **load)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    model.eval()
    half = case.family.model.from_pretrained(answers, dtype=torch.bfloat16, **load).eval()
    gen = torch.Generator().manual_seed(case.seed + 1000)
    banned = {tok.token_to_id(s) for s in SPECIAL}

    prompts, tensors = [], {}
    for n, length in enumerate(case.prompts):
        p = pick_prompt(model, half, length, gen, banned, case.bf16_calc_diff)
        tensors[f"logits.{n}"] = p["logits"].contiguous()
        tensors[f"greedy_logits.{n}"] = p["rows"].contiguous()
        prompts.append({
            "input_ids": p["input_ids"], "greedy": p["greedy"], "logits": f"logits.{n}",
            "greedy_logits": f"greedy_logits.{n}", "greedy_margin_of_range": round(p["margin"], 6),
            "router_gap": round(p["router_gap"], 6), "bf16_calc_diff": p["bf16_calc_diff"]})
        print(f"{name}: len {length:2} margin {p['margin']:.4f} router gap {p['router_gap']:.4f} "
              f"bf16 calc_diff {p['bf16_calc_diff']:.1e} distinct {p['distinct']}")
    save_file(tensors, path / "golden.safetensors")
    (path / "golden.safetensors").chmod(0o644)
    write_json(path / "golden.json", {
        "transformers": transformers.__version__, "torch": torch.__version__.split("+")[0],
        "compute": "float32", "stored": case.dtype, "prompts": prompts})
    if case.drafts:
        add_draft_layer(model, path, case.seed)
    if case.model_type:
        config = json.loads((path / "config.json").read_text())
        write_json(path / "config.json", {**config, "model_type": case.model_type})
