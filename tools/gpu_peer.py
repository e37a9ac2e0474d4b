#!/usr/bin/env python3
"""What torch takes on one device for the rows that an exchange moves there: index_select of every (token, expert)'s
row into expert order, and a weighted index_add of the results into the tokens. No planning, no ranks, no signals:
a peer for `ferry bench a2a --device cuda`, whose shapes these are; and the products of 16 experts with 512 rows each,
by batched products of its library. tools/gpu_check.sh runs it.

Usage: tools/gpu_peer.py [--json FILE]
"""
import argparse
import json
import statistics

import torch

HIDDEN, EXPERTS, TOPK = 7168, 256, 8
TOKENS = (1, 8, 128, 4096)
RANKS = (2, 4, 8)


def microseconds(work, repeats=50):
    """Median over repeats, by the device's clock, after a warm-up."""
    for _ in range(5):
        work()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1000)
    return statistics.median(times)


def measured(ranks, tokens):
    """All ranks' rows in one call: the whole device is theirs, as it is the exchange's."""
    rows = ranks * tokens
    hidden = torch.randn(rows, HIDDEN, device="cuda", dtype=torch.bfloat16)
    experts = torch.stack([torch.randperm(EXPERTS)[:TOPK] for _ in range(rows)]).flatten()
    entries = torch.argsort(experts, stable=True).cuda()
    sources = entries // TOPK
    weights = torch.rand(rows * TOPK, 1, device="cuda", dtype=torch.bfloat16)
    arrived = torch.empty(rows * TOPK, HIDDEN, device="cuda", dtype=torch.bfloat16)
    sums = torch.empty_like(hidden)

    def dispatch():
        torch.index_select(hidden, 0, sources, out=arrived)

    def combine():
        sums.zero_()
        sums.index_add_(0, sources, arrived * weights)

    return {"ranks": ranks, "tokens": tokens, "dispatch_us": microseconds(dispatch), "combine_us": microseconds(combine)}


def measured_experts(experts=16, rows=512, inter=2048):
    """Gate and up in one product, silu(gate) * up, and the product back."""
    x = torch.randn(experts, rows, HIDDEN, device="cuda", dtype=torch.bfloat16)
    w13 = torch.randn(experts, HIDDEN, 2 * inter, device="cuda", dtype=torch.bfloat16) / HIDDEN**0.5
    w2 = torch.randn(experts, inter, HIDDEN, device="cuda", dtype=torch.bfloat16) / inter**0.5

    def products():
        gate, up = torch.bmm(x, w13).chunk(2, dim=-1)
        torch.bmm(torch.nn.functional.silu(gate) * up, w2)

    us = microseconds(products)
    return {"experts": experts, "rows": rows, "inter": inter, "experts_us": us, "tflops": 6 * experts * rows * HIDDEN * inter / us / 1e6}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    print(f"torch {torch.__version__} on {torch.cuda.get_device_name()}: index_select, and index_add; us")
    print("ep  tokens  dispatch  combine")
    rows = []
    for ranks in RANKS:
        for tokens in TOKENS:
            rows.append(measured(ranks, tokens))
            print(f"{ranks:2}  {tokens:6}  {rows[-1]['dispatch_us']:8.1f}  {rows[-1]['combine_us']:7.1f}", flush=True)
    rows.append(measured_experts())
    print("experts: {experts} x {rows} rows, inter {inter}: {experts_us:.1f} us, {tflops:.1f} TFLOP/s".format(**rows[-1]))
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=2)


if __name__ == "__main__":
    main()
