#!/usr/bin/env python3
"""Tokens per second of vLLM on two cores, by how ranks share the work; in turns, so that ratios can be compared.

    scripts/setup.sh vllm
    build/venv-vllm/bin/python bench/vllm_exchange.py [--rounds 7] [--sequences 64] [--tokens 64]

Two ranks with a core each, but `one` (a process with both cores). Models: assets/demo-moe widened to 640 columns
(tests/vllm/widen.py), so that all rows run the same one.

    one         no ranks: one process, two OpenMP threads
    tp2         vLLM's own tensor parallelism
    tp2-ep      the same with experts spread out, by tokenferry-vllm
    dp2-ep      data-parallel attention, experts spread out, by tokenferry-vllm
    dp2-gather  the same with all_gather and reduce_scatter over gloo in its place, as vLLM does on other devices

Every row's processes are started first and wait. A round lets each row generate once; printed are the medians, and the
median of each row's speed over another's in the same round, with the range that half of the rounds lie in.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/vllm"))
import greedy  # noqa: E402

ROWS = {
    "one": dict(),
    "tp2": dict(tp=2, ep=False),
    "tp2-ep": dict(tp=2),
    "dp2-ep": dict(dp=2),
    "dp2-gather": dict(dp=2, gather=True),
}
RATIOS = [("tp2-ep", "tp2"), ("dp2-ep", "tp2"), ("dp2-ep", "dp2-gather"), ("dp2-ep", "one")]


class Gather:
    """tokenferry_vllm's Exchange by all_gather and reduce_scatter over gloo: every rank gets all tokens."""

    def __init__(self, moe):
        from vllm.distributed.parallel_state import get_ep_group

        self.group = get_ep_group()
        fewest, more = divmod(moe.num_experts, self.group.world_size)
        rank = self.group.rank_in_group
        self.first, self.count = rank * fewest + min(rank, more), fewest + (rank < more)

    def forward(self, x, ids, weights, kernel, out):
        import torch
        import torch.distributed as dist
        from vllm.forward_context import get_forward_context

        group, ranks = self.group.device_group, self.group.world_size
        # How many tokens each rank has, vLLM has asked already.
        sizes = get_forward_context().dp_metadata.num_tokens_across_dp_cpu.tolist()
        most = max(sizes)

        def gathered(rows):
            padded = rows.new_zeros((most, rows.shape[1]))
            padded[: len(rows)] = rows
            whole = rows.new_empty((ranks * most, rows.shape[1]))
            dist.all_gather_into_tensor(whole, padded, group=group)
            return whole

        all_x, all_ids, all_weights = gathered(x), gathered(ids), gathered(weights)
        local = all_ids - self.first
        here = (local >= 0) & (local < self.count)
        for rank, size in enumerate(sizes):
            here[rank * most + size : (rank + 1) * most] = False
        token, choice = here.nonzero(as_tuple=True)
        sums = torch.zeros_like(all_x)
        if len(token):
            rows = all_x[token]
            results = torch.empty_like(rows)
            kernel(rows, local[token, choice], all_weights[token, choice], results)
            sums.index_add_(0, token, results)
        mine = x.new_empty((most, x.shape[1]))
        dist.reduce_scatter_tensor(mine, sums, group=group)
        out.copy_(mine[: len(x)])


def worker(options):
    """Generates whenever a line comes, and says how long that took and which tokens came first."""
    import torch
    from vllm import LLM, SamplingParams

    tp, dp = options.get("tp", 1), options.get("dp", 1)
    more = {}
    if tp * dp > 1:
        more = dict(tensor_parallel_size=tp, data_parallel_size=dp, enable_expert_parallel=options.get("ep", True),
                    distributed_executor_backend="external_launcher")
        import tokenferry_vllm

        tokenferry_vllm.register()
        # Shared memory of vLLM's own collectives has the same name in all groups that torchrun starts.
        from vllm.distributed.device_communicators.cpu_communicator import _CPUSHMDistributed

        named = _CPUSHMDistributed.make_group_name
        _CPUSHMDistributed.make_group_name = staticmethod(
            lambda group: os.environ["MASTER_PORT"] + named(group).strip("/"))
        if options.get("gather"):
            from tokenferry_vllm import layers

            layers.exchange_of = Gather
    llm = LLM(model=options["path"], dtype="bfloat16", max_model_len=512, max_num_seqs=256, enforce_eager=True, seed=0,
              max_num_batched_tokens=1024, enable_prefix_caching=False, **more)
    rank = int(os.environ.get("RANK", "0"))
    texts = (greedy.prompts() * 256)[: options["sequences"]]
    mine = texts[rank // tp :: dp]
    params = SamplingParams(temperature=0, max_tokens=options["tokens"], ignore_eos=True)
    answer = os.fdopen(options["answer"], "w")
    print("threads", torch.get_num_threads(), flush=True)
    for _ in sys.stdin:
        begin = time.perf_counter()
        done = llm.generate(mine, params, use_tqdm=False)
        answer.write(json.dumps([time.perf_counter() - begin, list(done[0].outputs[0].token_ids)]) + "\n")
        answer.flush()


class Row:
    """The processes of one row."""

    def __init__(self, options, folder, name):
        ranks = options.get("tp", 1) * options.get("dp", 1)
        port = greedy.free_port()
        self.processes, self.answers, self.logs = [], [], []
        cores = sorted(os.sched_getaffinity(0))
        for rank in range(ranks):
            read, write = os.pipe()
            env = greedy.environment(ranks, ranks > 1, None) | dict(VLLM_ENABLE_V1_MULTIPROCESSING="0")
            if ranks > 1:
                env |= dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks),
                            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            else:
                env |= dict(VLLM_CPU_OMP_THREADS_BIND=f"{cores[0]}-{cores[1]}", OMP_NUM_THREADS="2")
            command = [sys.executable, __file__, "--worker", json.dumps(options | dict(answer=write))]
            self.logs.append(open(f"{folder}/{name}.{rank}.log", "w+"))
            self.processes.append(subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=self.logs[-1],
                                                   stderr=self.logs[-1], pass_fds=[write], text=True))
            os.close(write)
            self.answers.append(os.fdopen(read))

    def once(self):
        """Seconds of the slowest rank, and the first prompt's tokens."""
        try:
            for process in self.processes:
                process.stdin.write("go\n")
                process.stdin.flush()
            said = [answer.readline() for answer in self.answers]
        except BrokenPipeError:
            said = [""]
        if not all(said):
            ended = [process.poll() is not None for process in self.processes].index(True)
            raise RuntimeError(greedy.last_line(self.logs[ended]))
        said = [json.loads(line) for line in said]
        return max(seconds for seconds, _ in said), said[0][1]

    def end(self):
        for process in self.processes:
            process.kill()
            process.wait()


def quartiles(values):
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:5.2f} ({low:.2f} to {high:.2f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return worker(json.loads(options.worker))
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, ROOT / "tests/vllm/widen.py", f"{folder}/wide"], check=True)
        more = dict(path=f"{folder}/wide", sequences=options.sequences, tokens=options.tokens)
        rows = {name: Row(row | more, folder, name) for name, row in ROWS.items() if name in options.rows}
        try:
            first = {name: row.once()[1] for name, row in rows.items()}  # loads, warms up
            for name, tokens in first.items():
                print(f"{name:11} first prompt's tokens {'the same' if tokens == first[options.rows[0]] else 'others'}")
            speeds = {name: [] for name in rows}
            for _ in range(options.rounds):
                for name, row in rows.items():
                    speeds[name].append(options.sequences * options.tokens / row.once()[0])
        finally:
            for row in rows.values():
                row.end()
    for name, values in speeds.items():
        print(f"{name:11} {statistics.median(values):8.0f} tokens/s")
    for above, below in RATIOS:
        if above in speeds and below in speeds:
            print(f"{above:11} / {below:11} {quartiles([a / b for a, b in zip(speeds[above], speeds[below])])}")


if __name__ == "__main__":
    main()
