#!/usr/bin/env python3
"""One exchange from Python beside the same in C++, in turns in the same processes.

    PYTHONPATH=build/release/python bench/python_exchange.py [--tokens 1 128] [--ranks 2 4] [--rounds 9]

Ranks are processes over shm: H 7168, 256 experts, top-8, bf16, experts that do nothing. Prints the median of the
rounds' medians, and the median of how much it is above C++ in the same round, in us and as a ratio: `bound` four phases on
arrays that are looked at once, `forward` moe_forward with a callback on those, `fresh` four phases that look at their
arrays every time; and, where there is torch, `gloo`, two all_to_all_single that move as many rows, and `gloo+sums`, those with
rows gathered and results added up by torch, in the same processes and rounds. Tokens are of each rank; 1 is W2 of docs/performance.md, 128 is W1.
"""

import argparse
import importlib.util
import multiprocessing
import statistics
import time

import numpy as np
import tokenferry

HIDDEN, EXPERTS, TOPK = 7168, 256, 8


CALLS = 300  # of a way in one round, on all ranks
GLOO_CALLS = 20


def timed(call, calls=CALLS):
    times = []
    for _ in range(calls):
        begin = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - begin)
    return times


def gloo(rank, size, port, tokens):
    """Calls of what torch has for it: a token's row once to each rank, one result row a (token, expert) home, as many
    of each as are on average with experts chosen at random. Bare, and with the rows gathered before and the results
    weighted and added up behind, as an exchange does. Nobody says how many there are, which an exchange does too."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
    torch.set_num_threads(1)
    each = round(tokens * (1 - (1 - 1 / size) ** TOPK)) or 1  # tokens that have an expert there
    # bf16 in pairs, which gloo knows.
    rows = torch.zeros((size * each, HIDDEN // 2), dtype=torch.int32)
    back = torch.zeros((max(tokens * TOPK // size, 1) * size, HIDDEN // 2), dtype=torch.int32)
    x = torch.zeros((tokens, HIDDEN // 2), dtype=torch.int32)
    chosen = torch.arange(size * each) % tokens
    weights = torch.rand((tokens, 1, TOPK)).to(torch.bfloat16)

    def bare(rows=rows):
        dist.all_to_all_single(torch.empty_like(rows), rows)
        home = torch.empty_like(back)
        dist.all_to_all_single(home, back)
        return home

    def whole():
        home = bare(x.index_select(0, chosen)).view(torch.bfloat16)
        return torch.bmm(weights, home[: tokens * TOPK].view(tokens, TOPK, HIDDEN))

    return {"gloo": bare, "gloo+sums": whole}


def rank_main(rank, size, port, gloo_port, tokens, rounds, results):
    store = tokenferry.TcpStore("127.0.0.1", port, False, "bench")
    with tokenferry.join(store, rank, size, transport="shm") as comm:
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
        if gloo_port:
            for name, call in gloo(rank, size, gloo_port, tokens).items():
                ways[name] = lambda call=call: timed(call, GLOO_CALLS)
        found = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                comm.barrier()
                found[name].append(statistics.median(way()) / 1e3)
        if rank == 0:
            results.put(found)
        comm.barrier()


def run(size, tokens, rounds):
    spawn = multiprocessing.get_context("spawn")
    results = spawn.Queue()
    store = tokenferry.TcpStore("127.0.0.1", 0, True, "bench")
    gloo_port = free_port() if importlib.util.find_spec("torch") else None
    processes = [
        spawn.Process(target=rank_main, args=(rank, size, store.port, gloo_port, tokens, rounds, results))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    found = results.get(timeout=600)
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
    parser.add_argument("--ranks", type=int, nargs="+", default=[2])
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    for size in options.ranks:
        for tokens in options.tokens:
            found = run(size, tokens, options.rounds)
            for name, times in found.items():
                above = statistics.median(t - base for t, base in zip(times, found["c++"]))
                ratio = statistics.median(t / base for t, base in zip(times, found["c++"]))
                print(f"{size} ranks {tokens:5} tokens  {name:9} {statistics.median(times):9.1f} us  {above:+8.1f} us  {ratio:6.3f} x")


if __name__ == "__main__":
    main()
