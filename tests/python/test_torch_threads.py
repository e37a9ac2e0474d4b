"""A process that has torch with its own OpenMP threads beside ours: more threads than cores on every rank, in turns."""

import os
import time

import pytest
import ranks
import tokenferry
from frameworks import torch

pytestmark = pytest.mark.skipif(torch is None, reason="torch is not installed: its threads beside ours are not tested")

E, K, H, I, M = 4, 2, 128, 256, 16


def body(comm):
    torch.set_num_threads(2 * os.cpu_count())
    affinity = os.sched_getaffinity(0)
    torch.manual_seed(0)
    small = lambda *shape: torch.randint(-2, 3, shape).to(torch.bfloat16)  # noqa: E731: whole numbers, exact in any order
    w13, w2 = small(E, 2 * I, H) / 256, small(E, H, I) / 256
    w_in_torch = small(E, H, H).float()
    a2a = tokenferry.AllToAll(comm, num_experts=E, topk=K, hidden=H, max_tokens=M, dispatch_dtype="bf16",
                              combine_dtype="f32", timeout=20.0)
    first = comm.rank * a2a.slots_per_rank
    own = slice(first, first + a2a.slots_per_rank)
    ours = tokenferry.Experts(w13[own].contiguous(), w2[own].contiguous(), comm=comm)
    torch.manual_seed(comm.rank + 1)
    x = small(M - comm.rank, H)
    ids = torch.stack([torch.randperm(E)[:K] for _ in range(len(x))])
    weights = torch.ones(len(x), K)

    def in_torch(rows):  # matrices large enough for torch to spread them over its threads
        for slot, count in enumerate(rows.counts):
            rows.out[slot, :count] = rows.x[slot, :count].float() @ w_in_torch[first + slot]
            torch.ones(256, 256) @ torch.ones(256, 256)

    begin, last = time.monotonic(), None
    for _ in range(10):
        y = a2a.moe_forward_from_topk(x, ids, weights, in_torch, out=torch.empty(len(x), H))
        want = sum((x.float().unsqueeze(1) @ w_in_torch[ids[:, k]]).squeeze(1) for k in range(K))
        assert torch.equal(y, want)
        z = a2a.moe_forward_from_topk(x, ids, weights, ours)
        assert last is None or torch.equal(z, last)
        last = z
    assert torch.get_num_threads() == 2 * os.cpu_count() and os.sched_getaffinity(0) == affinity
    return time.monotonic() - begin


@pytest.mark.parametrize("threads", [1, 2])
def test_torchs_threads_and_ours_in_one_process(threads):
    """Twenty exchanges take well below a second where cores are free; the deadline of each wait is 20 s."""
    for seconds in ranks.in_processes(2, body, threads=threads):
        assert seconds < 30
