#!/usr/bin/env python3
"""Pins every bit that the engine gives: tests/data/bits.json has the hash of the logits of many ways to run each model.

    tools/bits.py check [--program build/release/ferry] [--jobs N] [--only REGEX] [--share N]
    tools/bits.py write [--program build/release/ferry] [--jobs N]

A row of the file is a model, what its logits' bits depend on (weights, wires, and the number of ranks where each sums
first) and the hash of each prompt. Its "runs" name a list of ways to run, all of which must give just these hashes:
that is the contract of docs/numerics.md. `check` prints a line for every run that does not, and ends with 1. FERRY_ISA
is passed on to the program; every instruction set must give the same. --program may begin with an emulator (docs/arm.md).

--only picks runs by a regular expression on "MODEL ARGUMENTS"; --share N takes one of N runs of each row, at least one,
and others from row to row, so that all rows and all ways are still met. `write` makes the file anew, from the lists in
this tool, and leaves it as it was if runs of one row differ. A change that is meant to change bits writes it and says
so in its commit.
"""

import argparse
import collections
import concurrent.futures
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "tests/data/bits.json"
DEMO = "assets/demo-moe"
COMMON = "--ignore-eos --max-new-tokens 5"
TIMEOUT_S = 280

WEIGHTS = ["f32", "bf16", "fp8", "int8", "int4", "mxfp4"]
WIRES = ["f32", "bf16", "fp8", "fp8_pow2", "int8", "int8_block"]
WIRE_PAIRS = [("bf16", "bf16"), ("fp8", "bf16"), ("fp8_pow2", "fp8"), ("int8", "int8_block")]
# Rows of two blocks of a wire's scales and of less than one; activations in bf16 and f32; weights that rows take with
# them to the experts; three experts a token.
WIRE_MODELS = [DEMO, *(f"tests/data/{name}" for name in ("deepseek_v3_fp8", "gpt_oss", "llama4_text"))]

# Rows that are rounded to int8 before they meet mxfp4: quantised as they are loaded, and as a checkpoint has it.
ROUNDED_MODELS = [DEMO, "tests/data/gpt_oss_mxfp4"]

# Experts move and have replicas while this runs.
RESTLESS = ("--enable-eplb --eplb-rebalance-num-iterations 2 --expert-distribution-recorder-buffer-size 2 "
            "--eplb-min-gain 0 --eplb-bytes-per-step 0")

RUNS = {
    # Whatever combines per expert: any number of ranks, groups, cuts of the prompts, transports and backends.
    "per_expert": [
        "--ep 1",
        "--ep 2",
        "--ep 3",
        "--ep 2 --tp 2",
        "--ep 4 --tp 2",
        "--ep 3 --tp 3",
        "--ep 1 --max-tokens 7",
        "--ep 2 --max-tokens 7",
        "--ep 3 --max-tokens 5 --two-batch-overlap",
        "--ep 4 --tp 2 --max-tokens 9 --moe-a2a-backend alltoallv",
        "--ep 1 --max-sequences 1",
        "--ep 1 --threads 3",
        "--ep 2 --threads 2",
        "--ep 2 --transport shm",
        "--ep 3 --transport shm --tp 3",
        "--ep 2 --transport fabric",
        "--ep 4 --transport fabric --ranks-per-host 2",
        "--ep 4 --transport fabric --ranks-per-host 2 --moe-a2a-backend ascend_fuseep",
        "--ep 3 --moe-a2a-backend alltoallv",
        "--ep 2 --moe-a2a-backend deepep --deepep-mode low_latency",
        "--ep 3 --moe-a2a-backend deepep --two-batch-overlap",
        "--ep 3 --moe-a2a-backend mooncake",
        "--ep 2 --moe-a2a-backend ascend_fuseep",
        "--ep 3 --moe-a2a-backend ascend_fuseep --transport shm --max-tokens 7",
        "--ep 2 --moe-a2a-backend auto",
        "--ep 3 --layout ragged",
        "--ep 2 --layout row_pointers --transport shm",
        "--ep 2 --ep-num-redundant-experts 2 --max-tokens 4 " + RESTLESS,
        "--ep 3 --eplb-replica-choice hash --ep-num-redundant-experts 3",
        "--ep 2 --tp 2 --expert-slices 2",
        "--ep 4 --tp 2 --expert-slices 2 --transport shm --max-tokens 7",
        "--ep 4 --tp 4 --expert-slices 2 --transport fabric --ranks-per-host 2",
        "--ep 4 --tp 4 --expert-slices 2 --ep-num-redundant-experts 2 --two-batch-overlap",
    ],
    # The same for weights other than the checkpoint's.
    "per_expert_short": [
        "--ep 1",
        "--ep 2",
        "--ep 3 --transport shm",
        "--ep 2 --tp 2",
        "--ep 3 --tp 3 --max-tokens 9",
        "--ep 2 --tp 2 --expert-slices 2 --transport shm",
        "--ep 1 --max-tokens 7 --threads 2",
        "--ep 3 --moe-a2a-backend alltoallv --max-tokens 6",
        "--ep 2 --moe-a2a-backend ascend_fuseep",
        "--ep 2 --moe-a2a-backend deepep --two-batch-overlap",
        "--ep 2 --ep-num-redundant-experts 2 --max-tokens 4 " + RESTLESS,
    ],
    # The same for wires: rows that change their type on the way cannot be read in place.
    "per_expert_wires": [
        "--ep 1",
        "--ep 2",
        "--ep 3",
        "--ep 3 --tp 3 --max-tokens 7",
        "--ep 2 --transport shm --two-batch-overlap",
        "--ep 4 --transport fabric --ranks-per-host 2",
        "--ep 3 --moe-a2a-backend alltoallv --max-tokens 9",
        "--ep 2 --moe-a2a-backend deepep --deepep-mode low_latency",
        "--ep 2 --moe-a2a-backend mooncake --layout ragged",
    ],
    # Whatever sums on each rank first: bits of their own for each number of ranks.
    **{
        f"summed_on_{n}": [f"--ep {n} " + run for run in [
            "--moe-a2a-backend none",
            "--moe-a2a-backend none --transport shm",
            "--moe-a2a-backend none --max-tokens 7 --threads 2",
            "--moe-a2a-backend none --transport fabric",
            f"--moe-a2a-backend none --tp {n}",
            "--moe-a2a-backend deepep --deepep-mode normal",
            "--moe-a2a-backend deepep --deepep-mode normal --max-tokens 7 --two-batch-overlap",
        ]] for n in (2, 3)
    },
    # And for each number of hosts that have several.
    "summed_on_2_hosts_of_2": ["--ep 4 --transport fabric --ranks-per-host 2 " + run for run in [
        "--moe-a2a-backend none",
        "--moe-a2a-backend deepep --deepep-mode normal --max-tokens 7",
    ]],
}


def golden_models():
    return sorted(f"tests/data/{path.parent.name}" for path in ROOT.glob("tests/data/*/golden.json")
                  if (path.parent / "config.json").exists())  # without: a tokenizer's


def prompts_of(model):
    """The shortest and the longest that a model has transformers' answers for; a longer one for the demo model."""
    if model == DEMO:
        return [[17], [(7 * i * i + 3 * i + 5) % 640 for i in range(150)]]
    golden = json.loads((ROOT / model / "golden.json").read_text())
    ids = sorted((prompt["input_ids"] for prompt in golden["prompts"]), key=len)
    return [ids[0], ids[-1]]


def rows_to_write():
    def row(model, arguments, runs):
        return {"args": arguments, "model": model, "runs": runs}

    def wire_args(dispatch, combine):
        return " ".join(f"--{way}-wire {wire}" for way, wire in (("dispatch", dispatch), ("combine", combine)) if wire)

    for model in [DEMO, *golden_models()]:
        yield row(model, "", "per_expert")
        for weights in WEIGHTS:
            yield row(model, f"--weights {weights}", "per_expert_short")
        if model in ROUNDED_MODELS:
            yield row(model, "--weights mxfp4 --activations int8", "per_expert_short")
        for runs in ("summed_on_2", "summed_on_3"):
            yield row(model, "", runs)
        if model not in WIRE_MODELS:
            continue
        yield row(model, "", "summed_on_2_hosts_of_2")
        for wires in [*((w, None) for w in WIRES), *((None, w) for w in WIRES), *WIRE_PAIRS]:
            for runs in ("per_expert_wires", "summed_on_2", "summed_on_3"):
                yield row(model, wire_args(*wires), runs)


Run = collections.namedtuple("Run", "row model arguments name")  # row: its number


class Program:
    """The program under test, and files of the prompts that it reads. command: words, an emulator may come first."""

    def __init__(self, command, common, prompts, directory):
        self.command, self.common, self.directory = shlex.split(command), common, Path(directory)
        for model, ids in prompts.items():
            self.ids_file(model).write_text("".join(" ".join(map(str, line)) + "\n" for line in ids))

    def ids_file(self, model):
        return self.directory / (model.replace("/", "_") + ".txt")

    def call(self, *arguments):
        done = subprocess.run([*self.command, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=TIMEOUT_S)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["nothing on stderr"]
            raise RuntimeError(f"exit status {done.returncode}: {lines[-1]}")
        return json.loads(done.stdout)

    def transports(self):
        """Those that work here."""
        return {name for name, state in self.call("doctor", "--json")["transports"].items() if state == "ok"}

    def hashes(self, run):
        """One for each prompt, or what went wrong, as text."""
        threads = "" if "--threads" in run.arguments else "--threads 1"
        try:
            report = self.call("generate", "--json", "--quiet", "--model", str(ROOT / run.model), "--input-ids",
                               str(self.ids_file(run.model)), *f"{self.common} {threads} {run.arguments}".split())
            return [result["logits_sha256"] for result in report["results"]]
        except (RuntimeError, subprocess.TimeoutExpired, ValueError, KeyError) as error:
            return f"{type(error).__name__}: {error}"


def runs_of(rows, run_lists, only, share):
    """What to run. `share` goes round each list of runs as rows go by."""
    picked, begin = [], collections.Counter()
    for number, row in enumerate(rows):
        ways = run_lists[row["runs"]]
        count = -(-len(ways) // share)
        for i in range(count):
            arguments = f"{row['args']} {ways[(begin[row['runs']] + i) % len(ways)]}".strip()
            name = f"{Path(row['model']).name} {arguments}"
            if re.search(only, name):
                picked.append(Run(number, row["model"], arguments, name))
        begin[row["runs"]] += count
    return picked


def run_all(program, runs, jobs):
    """Pairs (run, hashes), in order, of the runs whose transports this machine has; the number of the others."""
    try:
        there = program.transports()
    except (OSError, RuntimeError) as error:
        sys.exit(f"bits: {shlex.join(program.command)} does not run: {error}")
    wanted = [re.search(r"--transport (\w+)", run.arguments) for run in runs]
    possible = [run for run, transport in zip(runs, wanted) if not transport or transport[1] in there]
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        return list(zip(possible, pool.map(program.hashes, possible))), len(runs) - len(possible)


def differences(found, expected, prompts):
    """Lines that say how a run's hashes are not those expected."""
    if isinstance(found, str):
        return [found]
    if len(found) != len(expected):
        return [f"{len(found)} results for {len(expected)} prompts"]
    return [f"prompt of {len(ids)} tokens: logits {a[:16]}..., not {b[:16]}..."
            for a, b, ids in zip(found, expected, prompts) if a != b]


def report(problems, runs, left_out):
    for problem in problems:
        print(problem)
    note = f"; {left_out} left out, their transport is not available here" if left_out else ""
    print(f"bits: {runs} runs, {len(problems) or 'no'} differences{note}")
    return 1 if problems else 0


def text_of(file):
    """The file's JSON, a line for each row."""
    def lines(values):
        return ",\n".join("  " + json.dumps(value, sort_keys=True) for value in values)

    ways = ",\n".join(f"  {json.dumps(name)}: [\n{lines(file['runs'][name])}\n  ]" for name in sorted(file["runs"]))
    prompts = ",\n".join(f"  {json.dumps(model)}: {json.dumps(ids)}" for model, ids in sorted(file["prompts"].items()))
    return (f'{{\n"common": {json.dumps(file["common"])},\n"prompts": {{\n{prompts}\n}},\n'
            f'"rows": [\n{lines(file["rows"])}\n],\n"runs": {{\n{ways}\n}}\n}}\n')


def write(args):
    rows = list(rows_to_write())
    prompts = {row["model"]: prompts_of(row["model"]) for row in rows}
    runs = runs_of(rows, RUNS, "", 1)
    with tempfile.TemporaryDirectory() as directory:
        results, left_out = run_all(Program(args.program, COMMON, prompts, directory), runs, args.jobs)
    problems = []
    for run, found in results:
        if not isinstance(found, str):  # the first of a row that runs is what the others are held against
            rows[run.row].setdefault("logits_sha256", found)
        expected = rows[run.row].get("logits_sha256")
        problems += [f"{run.name}: {line}" for line in differences(found, expected, prompts[run.model])]
    if report(problems, len(results), left_out) or left_out:
        print(f"bits: {FILE.name} is as it was; writing it takes all transports, and rows whose runs agree")
        return 1
    FILE.write_text(text_of({"common": COMMON, "prompts": prompts, "rows": rows, "runs": RUNS}))
    return 0


def check(args):
    file = json.loads(FILE.read_text())
    rows, prompts = file["rows"], file["prompts"]
    runs = runs_of(rows, file["runs"], args.only, args.share)
    if not runs:
        sys.exit(f"bits: no run matches {args.only!r}")
    with tempfile.TemporaryDirectory() as directory:
        results, left_out = run_all(Program(args.program, file["common"], prompts, directory), runs, args.jobs)
    problems = [f"{run.name}: {line}" for run, found in results
                for line in differences(found, rows[run.row]["logits_sha256"], prompts[run.model])]
    return report(problems, len(results), left_out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for function in (check, write):
        command = commands.add_parser(function.__name__)
        command.set_defaults(function=function)
        command.add_argument("--program", default=shlex.quote(str(ROOT / "build/release/ferry")))
        command.add_argument("--jobs", type=int, default=os.cpu_count(), metavar="N")
        if function is check:
            command.add_argument("--only", default="", metavar="REGEX")
            command.add_argument("--share", type=int, default=1, metavar="N")
    args = parser.parse_args()
    return args.function(args)


if __name__ == "__main__":
    sys.exit(main())
