#!/usr/bin/env python3
"""Tokens/s with and without drafts, on text that repeats and on text that does not.

    tools/speculation.py FERRY [--model DIR] [--speculate ngram] [--tokens 256] [--pairs 3] [--draft-tokens 4]
        [-- generate's options]

Runs `ferry generate --json` by turns without and with --speculate ngram, or mtp. The text that repeats is one that asks for a
copy of itself by its form (the same few lines again and again), continued greedily; the text that does not is drawn at
temperature 1.5. Ids and logits_sha256 must be the same in all runs of a text. Prints, for each, the median of decoded
tokens a second, their ratio, and how many tokens were drafted and accepted. Take it on a quiet machine.
"""

import argparse
import json
import statistics
import subprocess
import sys

LINES = "".join(f"{name} has {n} apples and {n + 1} pears.\n" for n, name in enumerate(["Mia", "Tom", "Ana", "Ben"]))
TEXTS = {
    "repeats": ["--prompt", LINES * 4, "--temperature", "0"],
    "does not repeat": ["--prompt", "Once upon a time", "--temperature", "1.5", "--seed", "7"],
}


def generate(args, text, options):
    command = [args.ferry, "generate", "--json", "--ignore-eos", "--max-new-tokens", str(args.tokens)]
    if args.model:
        command += ["--model", args.model]
    ran = subprocess.run(command + text + options + args.options, capture_output=True, text=True)
    if ran.returncode != 0:
        sys.exit(ran.stderr.strip())
    return json.loads(ran.stdout)


def main():
    argv = sys.argv[1:]
    own, options = (argv[:argv.index("--")], argv[argv.index("--") + 1:]) if "--" in argv else (argv, [])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ferry")
    parser.add_argument("--model")
    parser.add_argument("--speculate", default="ngram", choices=["ngram", "mtp"])
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--draft-tokens", type=int, default=4)
    args = parser.parse_args(own)
    args.options = options
    drafts = ["--speculate", args.speculate, "--draft-tokens", str(args.draft_tokens)]

    print("| text | without | with | ratio | drafted | accepted |\n|---|---|---|---|---|---|")
    for name, text in TEXTS.items():
        rates, results = ([], []), []
        for _ in range(args.pairs):
            for which, more in enumerate([[], drafts]):
                report = generate(args, text, more)
                rates[which].append(report["decode_tokens_per_s"])
                results.append(report["results"])
        if any(result != results[0] for result in results):
            sys.exit(f"text that {name}: other tokens or logits with drafts than without")
        without, with_drafts = (statistics.median(r) for r in rates)
        print(f"| {name} | {without:.1f} | {with_drafts:.1f} | {with_drafts / without:.2f} "
              f"| {report['drafted_tokens']} | {report['accepted_tokens']} |")


if __name__ == "__main__":
    main()
