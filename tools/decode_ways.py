#!/usr/bin/env python3
"""How fast do two cores decode: whole experts on two ranks, experts in slices, or two threads of one rank?

    tools/decode_ways.py FERRY --model DIR [--rounds 9] [--batches 1,4,16] [--weights int8] [--tokens 32]
                         [--transport inproc]

Each round runs `ferry bench model` in every way, in an order that changes from round to round, so that a machine
which slows down or has other users troubles all alike. Printed are medians of tokens per second, and of the
ratios to two threads of one rank within a round, with the 95 % interval of their geometric mean. The ranks of the
first ways go over --transport.
"""

import argparse
import json
import statistics
import subprocess
import sys

from compare_builds import interval

WAYS = {
    "--ep 2 --threads 1": ["--ep", "2", "--threads", "1"],
    "--tp 2 --ep 2 --threads 1": ["--tp", "2", "--ep", "2", "--threads", "1"],
    "the same, --expert-slices 2": ["--tp", "2", "--ep", "2", "--threads", "1", "--expert-slices", "2"],
    "--ep 1 --threads 2": ["--ep", "1", "--threads", "2"],
}
STANDARD = list(WAYS)[-1]


def rates(options, way: str) -> dict[int, float]:
    """Tokens per second by batch."""
    command = [options.ferry, "bench", "model", "--json", "--quiet", "--model", options.model, "-p", "0", "-n",
               str(options.tokens), "-r", "1", "-b", options.batches, "--weights", options.weights] + WAYS[way]
    if way != STANDARD:
        command += ["--transport", options.transport]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"decode_ways: {' '.join(command)}: {done.stderr.strip()}")
    return {row["batch"]: row["tokens_per_s"] for row in json.loads(done.stdout)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ferry")
    parser.add_argument("--model", required=True)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batches", default="1,4,16")
    parser.add_argument("--weights", default="int8")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--transport", default="inproc")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds must be at least 2")
    names = list(WAYS)
    rounds = []
    for i in range(options.rounds):
        turn = names[i % len(names):] + names[:i % len(names)]
        measured = {way: rates(options, way) for way in (turn if i % 2 == 0 else reversed(turn))}
        rounds.append(measured)
        print(f"round {i + 1}: " + "; ".join(
            f"{way}: " + ", ".join(f"{rate:.1f}" for rate in measured[way].values()) for way in names),
            file=sys.stderr, flush=True)
    print(f"{'way':<30} {'batch':>5} {'tokens/s':>9} {'ratio':>6}  95 %")
    for batch in rounds[0][STANDARD]:
        for way in names:
            ratios = [one[way][batch] / one[STANDARD][batch] for one in rounds]
            low, high = interval(ratios) if way != STANDARD else (1.0, 1.0)
            print(f"{way:<30} {batch:>5} {statistics.median(one[way][batch] for one in rounds):>9.1f} "
                  f"{statistics.median(ratios):>6.2f}  {low:.2f} to {high:.2f}")


if __name__ == "__main__":
    main()
