#!/usr/bin/env python3
"""One exchange from Python beside the same in C++, in turns in the same processes.

    PYTHONPATH=build/release/python bench/python_exchange.py [--tokens 1 128] [--rounds 9]

Ranks are two processes over shm: H 7168, 256 experts, top-8, bf16, experts that do nothing. Prints the median of the
rounds' medians, and how much it is above C++ in the same round: `bound` four phases on arrays that are looked at once,
`forward` moe_forward with a callback on those, `fresh` four phases that look at their arrays every time; and, where there
is torch, two all_to_all_single over gloo that move the same rows.
"""

import argparse
import importlib.util
import multiprocessing
import statistics
import time

import numpy as np
import tokenferry

HIDDEN, EXPERTS, TOPK = 7168, 256, 8


CALLS = 300  # of a way in one round, on both ranks


def timed(call):
    times = []
    for _ in range(CALLS):
        begin = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - begin)
    return times


def rank_main(rank, port, tokens, rounds, results):
    store = tokenferry.TcpStore("127.0.0.1", port, False, "bench")
    with tokenferry.join(store, rank, 2, transport="shm") as comm:
        a2a = tokenferry.AllToAll(comm, num_experts=EXPERTS, topk=TOPK, hidden=HIDDEN, max_tokens=tokens)
        rng = np.random.default_rng(rank)
        x = rng.integers(0, 2**14, (tokens, HIDDEN)).astype(np.uint16)  # codes of bf16
        ids = np.stack([rng.permutation(EXPERTS)[:TOPK] for _ in range(tokens)]).astype(np.int32)
        weights, out = rng.random((tokens, TOPK), np.float32), np.empty_like(x)
        bound = a2a.bind(x, ids, weights, out)

        def phases():
            bound.dispatch_send()
            bound.dispatch_recv()
            bound.combine_send()
            bound.combine_recv()

        def fresh():
            a2a.dispatch_send(x, ids, weights)
            a2a.dispatch_recv()
            a2a.combine_send()
            a2a.combine_recv(out)

        ways = {
            "c++": lambda: bound.time_without_python(CALLS),
            "bound": lambda: timed(phases),
            "forward": lambda: timed(lambda: bound.moe_forward(lambda rows: None)),
            "fresh": lambda: timed(fresh),
        }
        found = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                comm.barrier()
                found[name].append(statistics.median(way()) / 1e3)
        if rank == 0:
            results.put(found)
        comm.barrier()


def gloo_main(rank, port, tokens, rounds, results):
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    # A token's row once to each rank, one result row a (token, expert) home: what pplx moves.
    rows = torch.zeros((2 * tokens, HIDDEN // 2), dtype=torch.int32)  # bf16 in pairs, which gloo knows
    back = torch.zeros((tokens * TOPK, HIDDEN // 2), dtype=torch.int32)
    times = []
    for _ in range(20 * rounds):
        begin = time.perf_counter()
        dist.all_to_all_single(torch.empty_like(rows), rows)
        dist.all_to_all_single(torch.empty_like(back), back)
        times.append(time.perf_counter() - begin)
    if rank == 0:
        results.put({"gloo": [statistics.median(times) * 1e6]})
    dist.destroy_process_group()


def run(body, port, tokens, rounds):
    spawn = multiprocessing.get_context("spawn")
    results = spawn.Queue()
    processes = [spawn.Process(target=body, args=(rank, port, tokens, rounds, results)) for rank in range(2)]
    for process in processes:
        process.start()
    found = results.get(timeout=120)
    for process in processes:
        process.join()
    return found


def free_port():
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 128])
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    for tokens in options.tokens:
        store = tokenferry.TcpStore("127.0.0.1", 0, True, "bench")
        found = run(rank_main, store.port, tokens, options.rounds)
        if importlib.util.find_spec("torch"):
            found |= run(gloo_main, free_port(), tokens, options.rounds)
        base = found["c++"]
        for name, times in found.items():
            above = [t - b for t, b in zip(times, base)] if len(times) == len(base) else [times[0] - statistics.median(base)]
            print(f"{tokens:5} tokens  {name:8} {statistics.median(times):9.1f} us  {statistics.median(above):+8.1f} us")


if __name__ == "__main__":
    main()
