#!/usr/bin/env python3
"""Is a build slower than another? Runs `ferry bench` of both in turn and compares pair by pair.

    tools/compare_builds.py BEFORE AFTER [--pairs 20] [--only REGEX] [--model DIR]

BEFORE and AFTER are two `ferry` programs. Each case is run by one and then the other, in an order that
changes from pair to pair, so that a machine which slows down or has other users troubles both alike. Printed
are the median ratio (above 1: AFTER is faster) and the 95 % interval of the mean of the logarithms of the
ratios, by Student's t. Exit status 1 where an interval lies wholly below 0.98.
"""

import argparse
import json
import math
import re
import statistics
import subprocess
import sys

A2A = ["bench", "a2a", "--json", "--ep", "2", "--seconds", "0.5", "--moe-a2a-backend", "pplx"]
MOE = ["bench", "moe", "--json", "--seconds", "0.5", "--threads", "1"]
MODEL = ["bench", "model", "--json", "--quiet", "--ep", "1", "-r", "1"]

# name: arguments, and where the figure stands in what is printed; times count inversely.
CASES = {
    "a2a W1 inproc": (A2A + ["--transport", "inproc", "--tokens", "128"], "time"),
    "a2a W1 shm": (A2A + ["--transport", "shm", "--tokens", "128"], "time"),
    "a2a W2 inproc": (A2A + ["--transport", "inproc", "--tokens", "1"], "time"),
    "a2a W2 shm": (A2A + ["--transport", "shm", "--tokens", "1"], "time"),
    "a2a W3 shm": (A2A + ["--transport", "shm", "--tokens", "4096", "--hidden", "2048"], "time"),
    "moe 1 token": (MOE + ["--tokens", "1"], "time"),
    "moe 16 tokens": (MOE + ["--tokens", "16"], "time"),
    "moe 512 tokens": (MOE + ["--tokens", "512"], "time"),
    "model pp512": (MODEL + ["-p", "512", "-n", "0"], "rate"),
    "model tg64": (MODEL + ["-p", "0", "-n", "64"], "rate"),
}

# Two-sided 95 % of Student's t by degrees of freedom; beyond the table the normal distribution's.
T95 = [12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
       2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042]


def figure(program: str, arguments: list[str], kind: str, model: list[str]) -> float:
    """What one run measured, the larger the better."""
    command = [program] + arguments + (model if "model" in arguments else [])
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"compare: {' '.join(command)}: {done.stderr.strip()}")
    row = json.loads(done.stdout)[-1]  # of bench a2a the last one is of dispatch and combine together
    return row["tokens_per_s"] if kind == "rate" else 1.0 / row["p50_us"]


def interval(ratios: list[float]) -> tuple[float, float]:
    logs = [math.log(r) for r in ratios]
    freedom = len(logs) - 1
    t = T95[freedom - 1] if freedom <= len(T95) else 1.96
    half = t * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(statistics.mean(logs) - half), math.exp(statistics.mean(logs) + half)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before")
    parser.add_argument("after")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--only", default="", help="cases whose name matches this pattern")
    parser.add_argument("--model", help="of the cases `model`; the demo model where it is left out")
    given = parser.parse_args()
    if given.pairs < 2:
        parser.error("--pairs: an interval needs at least 2")
    model = ["--model", given.model] if given.model else []

    print("| case | after / before | 95 % interval | pairs |\n|---|---|---|---|")
    slower = False
    for name, (arguments, kind) in CASES.items():
        if not re.search(given.only, name):
            continue
        ratios = []
        for pair in range(given.pairs):
            builds = {"before": given.before, "after": given.after}
            order = list(builds) if pair % 2 == 0 else list(reversed(builds))
            measured = {build: figure(builds[build], arguments, kind, model) for build in order}
            ratios.append(measured["after"] / measured["before"])
        low, high = interval(ratios)
        slower |= high < 0.98
        print(f"| {name} | {statistics.median(ratios):.3f} | {low:.3f} to {high:.3f} | {given.pairs} |", flush=True)
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
