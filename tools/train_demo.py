#!/usr/bin/env python3
"""Trains the demo model (assets/demo-moe) from nothing, on text this script makes up.

    python tools/train_demo.py [--steps N] [--out DIR] [--threads N] [--seed S]

The text is short sums and small stories, each with a question whose answer can be checked. Some number
pairs and some story ingredients are never trained on; eval.jsonl asks about exactly those. Weights are
rounded to bf16 before they are judged, because that is what the checkpoint holds.
"""

import argparse
import json
import math
import os
import random
import time
import zlib
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from transformers.models.qwen2_moe.modeling_qwen2_moe import load_balancing_loss_func

from golden.bpe import QWEN_SPLIT, byte_level_bpe, save_tokenizer
from golden.checkpoint import save_checkpoint
from golden.families.qwen import QWEN2

END = "<|endoftext|>"
MAX_NUMBER = 99

GIRLS = "Mia Anna Lucy Rosa Ella Nora Ruth Clara Ida Emma Zoe Lily".split()
BOYS = "Tom Ben Max Sam Leo Paul Finn Hugo Otto Jack Noah Adam".split()
CREATURES = "fox rabbit bear mouse girl boy duck frog cat dog sailor baker farmer king queen wizard".split()
ADJECTIVES = "little kind brave clever shy old merry quiet".split()
HOMES = ["in a small house by the sea", "in a warm cave", "at the edge of the forest", "on a green hill",
         "near the old mill", "in a tall tower", "under a big oak tree", "beside a wide river"]
TRIPS = ["to the market", "to the river", "into the forest", "to the beach", "up the hill", "to the village",
         "across the bridge", "to the garden"]
TIMES = ["One day", "One morning", "One sunny afternoon", "One rainy day", "Late one evening", "Early one winter morning"]
COLOURS = "red blue green yellow white black golden silver".split()
OBJECTS = "ball kite key hat lamp boat bell book cup drum ring shell".split()
SPOTS = ["in a box", "under the bed", "behind the door", "on the table", "in a basket", "under a stone",
         "in the kitchen", "on the roof", "behind a tree", "in a drawer"]
ENDINGS = ["They were both very happy.", "Then it was time to go home.", "After that they were the best of friends.",
           "In the evening they drank tea together.", "It was a wonderful day."]
THINGS = "apples books coins eggs stones shells flowers cookies pencils nuts".split()


# ---- text -----------------------------------------------------------------------------------------

# A message of a user is a question in the form that the text has.
CHAT_TEMPLATE = r"""{%- for message in messages -%}
  {%- if message.role == 'user' -%}
    {{- ('' if 'Question:' in message.content else 'Question: ') + message.content + '\n' -}}
  {%- elif message.role == 'assistant' -%}
    {{- 'Answer: ' + message.content + '\n' -}}
  {%- else -%}
    {{- message.content + '\n' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- 'Answer:' -}}
{%- endif -%}
"""


def held_out(*parts) -> bool:
    """About one in seven; a hash rather than a random draw, so that it never depends on order."""
    return zlib.crc32(" ".join(map(str, parts)).encode()) % 7 == 0


def numbers(rng: random.Random, test: bool) -> tuple[int, int]:
    while True:
        a, b = rng.randint(0, MAX_NUMBER), rng.randint(0, MAX_NUMBER)
        if held_out(min(a, b), max(a, b)) == test:  # both orders on one side: b + a would give it away
            return a, b


def short_sum(rng: random.Random, test: bool) -> tuple[str, str]:
    a, b = numbers(rng, test)
    form = rng.choice(["{a} + {b} =", "Question: What is {a} + {b}?\nAnswer:", "The sum of {a} and {b} is"])
    return form.format(a=a, b=b), f" {a + b}"


def word_sum(rng: random.Random, test: bool) -> tuple[str, str]:
    a, b = numbers(rng, test)
    (name, he, him), other = rng.choice([(n, "she", "her") for n in GIRLS] + [(n, "he", "him") for n in BOYS]), None
    while other in (None, name):
        other = rng.choice(GIRLS + BOYS)
    thing = rng.choice(THINGS)
    story = rng.choice([
        "{name} has {a} {thing}. {other} gives {him} {b} more.\nQuestion: How many {thing} does {name} have now?",
        "{name} found {a} {thing}. Then {he} found {b} more.\nQuestion: How many {thing} did {name} find?",
        "There are {a} {thing} on the table. {name} brings {b} more.\nQuestion: How many {thing} are there now?",
    ]).format(name=name, other=other, he=he, him=him, a=a, b=b, thing=thing)
    return story + "\nAnswer:", f" {a + b}"


def story(rng: random.Random, test: bool) -> tuple[str, str]:
    while True:
        name, other = rng.sample(GIRLS + BOYS, 2)
        thing, spot = rng.choice(OBJECTS), rng.choice(SPOTS)
        if held_out(name, thing, spot) == test:
            break
    kind, kind2 = rng.sample(CREATURES, 2)
    adj, home, trip, when = (rng.choice(x) for x in (ADJECTIVES, HOMES, TRIPS, TIMES))
    colour, he = rng.choice(COLOURS), "she" if name in GIRLS else "he"
    an = "an" if adj == "old" else "a"
    text = [rng.choice([f"Once upon a time there was {an} {adj} {kind} named {name}. {name} lived {home}.",
                        f"Once upon a time {an} {adj} {kind} named {name} lived {home}.",
                        f"Long ago there was {an} {adj} {kind} named {name} who lived {home}."])]
    text.append(rng.choice([f"{when} {name} went {trip} and found a {colour} {thing}.",
                            f"{when} {he} walked {trip}. There {he} found a {colour} {thing}."]))
    asks = [(f"Where did {name} live?", home), (f"Where did {name} go?", trip),
            (f"What did {name} find?", f"a {colour} {thing}"), (f"What colour was the {thing}?", colour),
            (f"Who found the {thing}?", name), (f"Who was {name}?", f"{an} {adj} {kind}")]
    text.append(rng.choice([f"On the way home {he} met {other} the {kind2}.", f"Then {name} met a {kind2} named {other}."]))
    asks.append((f"Who was {other}?", f"a {kind2}"))
    end = rng.randrange(3)
    if end == 0:
        text.append(f"{name} gave the {thing} to {other}.")
        asks += [(f"Who has the {thing} now?", other)] * 2
    elif end == 1:
        text.append(f"{name} hid the {thing} {spot}.")
        asks += [(f"Where is the {thing} now?", spot), (f"Who hid the {thing}?", name)]
    else:
        text.append(f"{name} gave the {thing} to {other}, and {other} put it {spot}.")
        asks += [(f"Where is the {thing} now?", spot), (f"Who put the {thing} {spot}?", other)]
    text.append(rng.choice(ENDINGS))
    question, answer = rng.choice(asks)
    return " ".join(text) + f"\nQuestion: {question}\nAnswer:", " " + answer


# What a step sees: generator, samples a step. Rows of one kind have similar lengths, so little is padding.
MIX = [(short_sum, 192), (word_sum, 48), (story, 32)]


# ---- training -------------------------------------------------------------------------------------

def new_model(vocab: int, end_id: int, seed: int):
    config = transformers.Qwen2MoeConfig(
        vocab_size=vocab, hidden_size=160, num_hidden_layers=4, num_attention_heads=5, num_key_value_heads=5,
        intermediate_size=320, moe_intermediate_size=96, shared_expert_intermediate_size=224, num_experts=16,
        num_experts_per_tok=2, norm_topk_prob=True, decoder_sparse_step=1, max_position_embeddings=1024,
        rope_theta=10000.0, tie_word_embeddings=False, initializer_range=0.05, router_aux_loss_coef=0.01,
        bos_token_id=None, eos_token_id=end_id, pad_token_id=None)
    torch.manual_seed(seed)
    model = transformers.Qwen2MoeForCausalLM._from_config(config, attn_implementation="sdpa")
    model.set_experts_implementation("grouped_mm")  # the quickest of them on a CPU, in f32
    model.generation_config = transformers.GenerationConfig(eos_token_id=end_id, do_sample=False)
    return model


def batch(tok, end_id: int, samples: list[tuple[str, str]]):
    """Right-padded rows (a causal model never sees the padding) and a weight for every next token."""
    rows = []
    prompts = tok.encode_batch([p for p, _ in samples])
    answers = tok.encode_batch([a for _, a in samples])
    for p, a in zip(prompts, answers):
        # The answer counts most: what comes before it is partly chance and cannot be predicted.
        rows.append((p.ids + a.ids + [end_id], [0.15] * len(p.ids) + [1.0] * (len(a.ids) + 1)))
    width = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), width), end_id)
    weight = torch.zeros(len(rows), width)
    for i, (row, w) in enumerate(rows):
        ids[i, :len(row)] = torch.tensor(row)
        weight[i, :len(w)] = torch.tensor(w)
    return ids, weight


def loss_of(model, ids, weight):
    out = model(ids[:, :-1], output_router_logits=True, use_cache=False)
    ce = F.cross_entropy(out.logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    w = weight[:, 1:].flatten()
    config = model.config
    balance = load_balancing_loss_func(out.router_logits, config.num_experts, config.num_experts_per_tok,
                                       (weight[:, :-1] > 0).long())
    answer = (ce * (w == 1)).sum() / (w == 1).sum()
    return (ce * w).sum() / w.sum() + config.router_aux_loss_coef * balance, answer.detach()


def train(model, tok, end_id: int, args) -> None:
    decay = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    opt = torch.optim.AdamW([{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}],
                            lr=args.lr, betas=(0.9, 0.98), fused=True)
    rng = random.Random(args.seed)
    start, seen = time.time(), {kind.__name__: 0.0 for kind, _ in MIX}
    for step in range(args.steps):
        progress = step / args.steps
        warm = min(1.0, (step + 1) / 60)
        for group in opt.param_groups:
            group["lr"] = args.lr * warm * (0.5 * (1 + math.cos(math.pi * progress)) * 0.98 + 0.02)
        for kind, count in MIX:
            ids, weight = batch(tok, end_id, [kind(rng, False) for _ in range(count)])
            loss, answer = loss_of(model, ids, weight)
            (loss / len(MIX)).backward()
            seen[kind.__name__] = 0.9 * seen[kind.__name__] + 0.1 * float(answer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        if (step + 1) % 25 == 0:
            losses = " ".join(f"{k} {v:.3f}" for k, v in seen.items())
            print(f"step {step + 1}/{args.steps} answer loss: {losses}  ({time.time() - start:.0f} s)", flush=True)
        if (step + 1) % 250 == 0:
            items = eval_items(random.Random(step), 60)
            print("  held out:", report(items, answer_batched(model, tok, end_id, items)), flush=True)


# ---- judging --------------------------------------------------------------------------------------

def eval_items(rng: random.Random, count: int) -> list[dict]:
    share = [(short_sum, 0.4), (word_sum, 0.2), (story, 0.4)]
    items, seen = [], set()
    for kind, part in share:
        wanted = len(items) + round(count * part)
        while len(items) < wanted:
            prompt, answer = kind(rng, True)
            if prompt not in seen:
                seen.add(prompt)
                items.append({"prompt": prompt, "answer": answer.strip()})
    return items


@torch.no_grad()
def answer_batched(model, tok, end_id: int, items: list[dict]) -> list[str]:
    """Quick greedy answers while training: whole rows again for every token, no cache."""
    rows = [tok.encode(item["prompt"]).ids for item in items]
    starts = [len(r) for r in rows]
    for _ in range(14):
        open_rows = [r for r in rows if r[-1] != end_id]
        if not open_rows:
            break
        width = max(map(len, open_rows))
        ids = torch.tensor([r + [end_id] * (width - len(r)) for r in open_rows])
        logits = model(ids, use_cache=False).logits
        for r, row_logits in zip(open_rows, logits):
            r.append(int(row_logits[len(r) - 1].argmax()))
    return [tok.decode([i for i in r[s:] if i != end_id]) for r, s in zip(rows, starts)]


@torch.no_grad()
def answer_generate(model, tok, end_id: int, items: list[dict]) -> list[str]:
    """The answers as a user of transformers gets them."""
    texts = []
    for item in items:
        ids = torch.tensor([tok.encode(item["prompt"]).ids])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False,
                             eos_token_id=end_id, pad_token_id=end_id)[0, ids.shape[1]:].tolist()
        texts.append(tok.decode([i for i in out if i != end_id]))
    return texts


def report(items: list[dict], texts: list[str]) -> dict:
    right = [text.split("\n")[0].strip() == item["answer"] for text, item in zip(texts, items)]
    sums = [r for r, item in zip(right, items) if item["answer"].isdigit()]
    rest = [r for r, item in zip(right, items) if not item["answer"].isdigit()]
    return {"exact": round(sum(right) / len(right), 3), "sums": round(sum(sums) / len(sums), 3),
            "stories": round(sum(rest) / len(rest), 3)}


@torch.no_grad()
def expert_use(model, tok, items: list[dict]) -> list[str]:
    """Per layer the smallest and largest share of the assignments an expert got (even would be 1/E)."""
    lines = []
    counts = torch.zeros(model.config.num_hidden_layers, model.config.num_experts)
    for item in items:
        out = model(torch.tensor([tok.encode(item["prompt"]).ids]), output_router_logits=True)
        for layer, logits in enumerate(out.router_logits):
            counts[layer] += torch.bincount(logits.topk(2, dim=-1).indices.flatten(), minlength=counts.shape[1])
    for layer, row in enumerate(counts):
        share = row / row.sum()
        lines.append(f"layer {layer}: {share.min():.3f} to {share.max():.3f}")
    return lines


def main() -> None:
    root = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=root / "assets" / "demo-moe")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lr", type=float, default=2e-3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()

    rng = random.Random(args.seed)
    corpus = ["".join(kind(rng, False)) for kind, _ in MIX for _ in range(3000)]
    tok = byte_level_bpe(QWEN_SPLIT, True, 640, corpus, [END])
    end_id = tok.token_to_id(END)
    vocab = (tok.get_vocab_size() + 15) // 16 * 16
    model = new_model(vocab, end_id, args.seed)
    print(f"vocab {tok.get_vocab_size()} (rows {vocab}), {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters")
    train(model, tok, end_id, args)

    save_checkpoint(model.eval().to(torch.bfloat16), args.out, QWEN2)
    save_tokenizer(tok, args.out, string_merges=True, eos=END)
    (args.out / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    items = eval_items(random.Random(args.seed + 1), 200)
    (args.out / "eval.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))

    for dtype in (torch.float32, torch.bfloat16):
        model = transformers.AutoModelForCausalLM.from_pretrained(args.out, dtype=dtype).eval()
        texts = answer_generate(model, tok, end_id, items)
        print(f"eval.jsonl, computing in {dtype}: {report(items, texts)}")
        for item, text in zip(items, texts):
            if text.strip() != item["answer"]:
                print("   wrong:", repr(item["prompt"][-60:]), "->", repr(text), "expected", repr(item["answer"]))
        if dtype == torch.float32:
            print("\n".join(expert_use(model, tok, items)))
            for prompt in ("Once upon a time", "Long ago there was a brave"):
                print("free:", prompt + answer_long(model, tok, prompt))
    print(f"{args.out.name}: {sum(f.stat().st_size for f in args.out.iterdir()) / 1e6:.2f} MB")


@torch.no_grad()
def answer_long(model, tok, prompt: str) -> str:
    ids = torch.tensor([tok.encode(prompt).ids])
    torch.manual_seed(0)
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=120, do_sample=True,
                         temperature=0.7, top_k=0, pad_token_id=model.config.eos_token_id)
    return tok.decode(out[0, ids.shape[1]:].tolist())


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
