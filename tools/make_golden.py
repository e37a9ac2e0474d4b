#!/usr/bin/env python3
"""Golden data for the C++ tests: tiny random checkpoints with transformers' own answers.

    python tools/make_golden.py [--out tests/data] [--only NAME ...]

Per model case it writes DIR/<case>/ in Hugging Face layout plus
    golden.json         prompts (input_ids, 32 greedy ids, tensor names) and how robust they are
    golden.safetensors  logits.N        f32 [prompt_len, vocab]  after every prompt position
                        greedy_logits.N f32 [32, vocab]          rows that chose each greedy token
and per tokenizer DIR/tokenizer_<name>/ with tokenizer.json, golden.json (encode and decode) and
decode.json (id slices which may cut a character in half).

Everything is seeded: on one machine the files come out the same each time. On another torch may draw other
numbers, so that a case written again there is another case. Logits come from the checkpoint as read back from
disk, in f32 on one thread, so they also answer for the files themselves (rounding to bf16/f16, shards, config form).
"""

import argparse
import os
from pathlib import Path

import torch
import transformers

from golden.families import CASES
from golden.model_answers import golden_model
from golden.tokenizer_answers import golden_tokenizers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "tests" / "data")
    parser.add_argument("--only", nargs="*", default=None, help="these cases, or `tokenizers`")
    args = parser.parse_args()
    torch.set_num_threads(1)  # one summation order
    torch.set_grad_enabled(False)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if args.only is None or "tokenizers" in args.only:
        golden_tokenizers(args.out)
    for name, case in CASES.items():
        if args.only is None or name in args.only:
            golden_model(name, case, args.out)
    size = sum(f.stat().st_size for f in args.out.rglob("*") if f.is_file())
    print(f"{args.out.name}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
