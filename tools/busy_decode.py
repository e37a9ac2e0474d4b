#!/usr/bin/env python3
"""Decode on a busy machine: tokens per second of the demo model over two ranks, beside loops that never wait.

    tools/busy_decode.py PROGRAM [PROGRAM ...] [--loops 0,2,3,4] [--transports inproc,shm] [--rounds 5] [--tokens 256]

Each PROGRAM is a `ferry`; they take turns. Printed is the median of the rounds, and what would be fair: the rate without
loops, times the share of the cores that two of so many threads get. Every rank has one thread.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess


def spin():
    while True:
        pass


def tokens_per_second(program, transport, tokens):
    command = [program, "bench", "model", "-p", "0", "-n", str(tokens), "-r", "1", "--ep", "2", "--threads", "1"]
    done = subprocess.run([*command, "--transport", transport, "--json", "--quiet"], capture_output=True, text=True,
                          check=True)
    return json.loads(done.stdout)[0]["tokens_per_s"]


def measure(options, loops):
    spinning = [multiprocessing.Process(target=spin, daemon=True) for _ in range(loops)]
    for process in spinning:
        process.start()
    rates = {}
    for _ in range(options.rounds):
        for transport in options.transports.split(","):
            for program in options.program:
                rates.setdefault((program, transport), []).append(tokens_per_second(program, transport, options.tokens))
    for process in spinning:
        process.kill()
    return {case: statistics.median(values) for case, values in rates.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", nargs="+")
    parser.add_argument("--loops", default="0,2,3,4")
    parser.add_argument("--transports", default="inproc,shm")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=256)
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    alone = {}
    print(f"{cores} cores\n| loops | transport | program | tokens/s | fair share |\n|---|---|---|---|---|")
    for loops in map(int, options.loops.split(",")):
        for (program, transport), rate in measure(options, loops).items():
            if loops == 0:
                alone[program, transport] = rate
            fair = "-"
            if (program, transport) in alone:
                fair = f"{alone[program, transport] * min(1, cores / (2 + loops)):.0f}"
            print(f"| {loops} | {transport} | {program} | {rate:.0f} | {fair} |", flush=True)


if __name__ == "__main__":
    main()
