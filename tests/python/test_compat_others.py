"""The other systems' names: what their tests assert."""

import contextlib

import numpy as np
import pytest
import ranks
import tokenferry
from frameworks import FRAMEWORKS, make, read
from tokenferry.compat import eplb
from tokenferry.compat.mooncake import mooncake_ep_buffer
from tokenferry.compat.pplx_kernels import AllToAll

M, H, E, K = 6, 256, 8, 2


def case(rank, count):
    rng = np.random.default_rng(rank)
    ids = np.stack([rng.permutation(E)[:K] for _ in range(count)])
    return rng.integers(-8, 8, (count, H)).astype(np.float32), ids, rng.random((count, K), np.float32)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("dtype, dp_size", [("bfloat16", 1), ("float16", 1), ("float32", 2)])
@pytest.mark.parametrize("split", [False, True])
def test_pplx(framework, dtype, dp_size, split):
    size = 2 * dp_size

    def body(comm):
        groups, local, group = size // dp_size, E // size, comm.rank // dp_size
        a2a = AllToAll.intranode(M, E, K, comm.rank, size, dp_size, H, H * 2, 0, group=comm)
        count = M - group
        x, ids, weights = case(group, M)
        indices = make(ids.astype(np.uint32), "numpy") if framework == "numpy" else make(ids.astype(np.int32), framework)
        bound = np.array([count], np.uint32)
        numbers = make(np.full(local, -1, np.int32), framework)
        rows = make(np.zeros((local, M * groups, H), np.float32), framework, dtype)
        given = dict(out_expert_num_tokens=numbers, out_expert_x=rows, out_expert_x_scale=None,
                     dp_x=make(x, framework, dtype), dp_x_scale=None, indices=indices, bound_m=bound)
        for phases in ([(True, False), (False, True)] if split else [(True, True)]):
            a2a.dispatch(**given, do_send=phases[0], do_recv=phases[1])
        for e in range(local):
            expert = comm.rank * local + e
            want = [case(g, M)[0][t] for g in range(groups) for t in range(M - g) if expert in case(g, M)[1][t]]
            assert read(numbers, int)[e] == len(want)
            got = read(rows)[e, : len(want)]
            np.testing.assert_array_equal(np.sort(got, axis=0), np.sort(np.array(want).reshape(-1, H), axis=0))
        results = make(2 * read(rows), framework, dtype)
        out = make(np.full((M, H), 77, np.float32), framework, dtype)
        for phases in ([(True, False), (False, True)] if split else [(True, True)]):
            a2a.combine(out, indices, make(weights, framework), results, bound, *phases)
        np.testing.assert_allclose(read(out)[:count], (2 * x * weights.sum(1, keepdims=True))[:count], rtol=0.02, atol=0.05)
        assert (read(out)[count:] == 77).all()
        a2a.destroy()

    ranks.in_threads(size, body)


@pytest.mark.parametrize("results", ["bfloat16", "float16", "float32"])
def test_pplx_results_may_be_finer_than_rows(results):
    """Results of any type come back as exact as they are; what bfloat16 ones have made narrow is refused to others."""

    def body(comm):
        a2a = AllToAll.internode(M, E, K, comm.rank, 2, 1, H, H * 2, 0, group=comm)
        x, ids, _ = case(comm.rank, M)
        for name in (results, results, "float32"):
            refused = results == "bfloat16" and name == "float32"
            numbers, rows = np.zeros(E // 2, np.int32), make(np.zeros((E // 2, 2 * M, H), np.float32), "numpy", "bfloat16")
            a2a.dispatch(numbers, rows, None, make(x, "numpy", "bfloat16"), None, ids.astype(np.uint32), None)
            grain = 1 + 2.0 ** -{"bfloat16": 7, "float16": 10, "float32": 23}[name]  # one step of that type
            out = np.zeros((M, H), np.float32)
            weights = np.tile(np.float32([1, 0]), (M, 1))
            with pytest.raises(tokenferry.ConfigError, match="make another") if refused else contextlib.nullcontext():
                a2a.combine(out, ids.astype(np.uint32), weights, make(np.sign(read(rows)) * np.float32(grain), "numpy", name), None)
            if refused:
                continue
            np.testing.assert_array_equal(out, np.sign(x) * np.float32(grain))
        a2a.destroy()

    ranks.in_threads(2, body)


def test_pplx_under_torch_compile():
    torch = pytest.importorskip("torch")

    def body(comm):
        a2a = AllToAll.intranode(M, E, K, comm.rank, 2, 1, H, H * 2, 0, group=comm)
        x, ids, weights = (torch.from_numpy(part) for part in case(comm.rank, M))
        numbers, rows = torch.zeros(E // 2, dtype=torch.int32), torch.zeros((E // 2, 2 * M, H))
        torch.compile(a2a.dispatch)(numbers, rows, None, x, None, ids.to(torch.int32), None)
        out = torch.empty((M, H))
        torch.compile(a2a.combine)(out, ids.to(torch.int32), weights, 2 * rows, None)
        np.testing.assert_allclose(out, 2 * x * weights.sum(1, keepdims=True), rtol=1e-6)
        a2a.destroy()

    ranks.in_threads(2, body)


def test_without_a_group_the_ranks_are_torchs(tmp_path):
    dist = pytest.importorskip("torch.distributed")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        with pytest.raises(tokenferry.ConfigError, match="the group says 0 of 1"):
            AllToAll.internode(M, E, K, 0, 2, 1, H, H * 2, 0)
    finally:
        dist.destroy_process_group()


def test_pplx_refuses_one_group():
    def body(comm):
        with pytest.raises(tokenferry.ConfigError, match="dp_size"):
            AllToAll.internode(M, E, K, 0, 1, 1, H, H * 2, 0, group=comm)

    ranks.in_threads(1, body)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_eplb_gives_what_deepseek_published(framework):
    """The example of their README."""
    weight = np.array([[90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
                       [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27]])
    physical, logical, count = eplb.rebalance_experts(make(weight, framework), 16, 4, 2, 8)
    assert read(physical, int).tolist() == [
        [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
        [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1]]
    physical, logical, count = (read(a, int) for a in (physical, logical, count))
    assert (count.sum(axis=1) == 16).all() and logical.shape == (2, 12, count.max())
    for layer in range(2):
        for e in range(12):
            slots = logical[layer, e]
            assert (slots >= 0).sum() == count[layer, e]
            assert (physical[layer][slots[slots >= 0]] == e).all()


def test_eplb_without_groups_and_what_cannot_be():
    weight = np.random.default_rng(1).random((3, 10)).astype(np.float32)
    physical, _, count = eplb.rebalance_experts(weight, 12, 3, 2, 4)  # groups do not divide by nodes
    assert physical.shape == (3, 12) and (count >= 1).all()
    with pytest.raises(tokenferry.ConfigError, match="13 replicas"):
        eplb.rebalance_experts(weight, 13, 1, 1, 4)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("hook", [False, True])
def test_mooncake_round_trip(framework, hook):
    def body(comm):
        buffer = mooncake_ep_buffer.Buffer(comm)
        x, ids, weights = case(comm.rank, M)
        active = make(np.ones(comm.size, np.int32), framework)
        recv, count, handle, event, run = buffer.dispatch(
            make(x, framework, "bfloat16"), make(ids.astype(np.int64), framework), active, M, E, -1, use_fp8=False,
            return_recv_hook=hook)
        run() if hook else event.current_stream_wait()
        combined, event, run = buffer.combine(
            recv, make(ids.astype(np.int64), framework), make(weights, framework), active, -1, handle,
            return_recv_hook=hook)
        run() if hook else event.current_stream_wait()
        assert read(active, int).tolist() == [1, 1]
        np.testing.assert_allclose(read(combined), x * weights.sum(1, keepdims=True), rtol=0.01, atol=1e-3)

    ranks.in_threads(2, body)


@pytest.mark.parametrize("active", [None, np.ones(M, np.int32)])
def test_mooncake_meets_again(active):
    """Some ranks update, one makes a new Buffer; active_ranks may be left out, or be no list of this group's ranks."""

    def body(comm):
        buffer = mooncake_ep_buffer.Buffer(comm)
        if comm.rank == 1:
            buffer = mooncake_ep_buffer.Buffer(comm)
        else:
            buffer.update_ep_member()
        x, ids, weights = case(comm.rank, M)
        recv, _, handle, _, _ = buffer.dispatch(make(x, "numpy", "bfloat16"), ids, active, M, E, -1, use_fp8=False)
        combined, _, _ = buffer.combine(recv, ids, weights, active, -1, handle)
        np.testing.assert_allclose(read(combined), x * weights.sum(1, keepdims=True), rtol=0.01, atol=1e-3)

    ranks.in_threads(2, body)


def lose_a_rank(comm, doomed):
    buffer = mooncake_ep_buffer.Buffer(comm)
    x, ids, weights = case(comm.rank, M)
    x, ids, active = make(x, "numpy", "bfloat16"), ids.astype(np.int64), np.ones(comm.size, np.int32)
    buffer.dispatch(x, ids, active, M, E, -1, use_fp8=False)
    if comm.rank == doomed:
        import time

        time.sleep(3)  # late, not dead
        return None
    recv, _, handle, _, _ = buffer.dispatch(x, ids, active, M, E, 300_000, use_fp8=False)
    assert active.tolist() == [int(r != doomed) for r in range(comm.size)]
    combined, _, _ = buffer.combine(recv, ids, weights, active, 300_000, handle)
    there = ids // (E // comm.size) != doomed
    np.testing.assert_allclose(read(combined), read(x) * np.where(there, weights, 0).sum(1)[:, None], rtol=0.01, atol=1e-3)


def test_mooncake_goes_on_without_a_late_rank():
    with ranks.Processes(4, lose_a_rank, 3) as processes:
        found = processes.collect(3)
    assert sorted(found) == [0, 1, 2]
    for good, result in found.values():
        assert good, result


def moe_case(rank, size, dtype=np.float32):
    rng = np.random.default_rng(7)
    w13 = (rng.standard_normal((E, 2 * 48, 64)) / 8).astype(dtype)
    w2 = (rng.standard_normal((E, 64, 48)) / 7).astype(dtype)
    rng = np.random.default_rng(rank)
    x = rng.standard_normal((M - rank, 64)).astype(dtype)
    ids = np.stack([rng.permutation(E)[:K] for _ in range(M - rank)])
    weights = rng.random((M - rank, K), np.float32)
    own = slice(rank * E // size, (rank + 1) * E // size)
    return x, ids, weights, w13, w2, own


def moe_expected(x, ids, weights, w13, w2):
    out = np.zeros_like(x)
    for t in range(len(x)):
        for k, e in enumerate(ids[t]):
            gate, up = np.split(w13[e] @ x[t], 2)
            out[t] += weights[t, k] * (w2[e] @ (gate / (1 + np.exp(-gate)) * up))
    return out


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("renormalize", [False, True])
def test_dlinfer(framework, renormalize):
    from tokenferry.compat.dlinfer_moe import fused_moe_all2all

    def body(comm):
        x, ids, weights, w13, w2, own = moe_case(comm.rank, comm.size)
        given = make(weights.copy(), framework)
        gate_up, down = make(w13[own].copy(), framework), make(w2[own].copy(), framework)
        if renormalize:
            weights = weights / weights.sum(axis=1, keepdims=True)
        for _ in range(2):
            y = fused_moe_all2all(make(x, framework), gate_up, down, given, make(ids, framework), renormalize, comm.size,
                                  comm.rank, comm, None)
            np.testing.assert_allclose(read(y), moe_expected(x, ids, weights, w13, w2), rtol=1e-3, atol=1e-4)

    ranks.in_threads(2, body)


def test_dlinfer_with_a_kernel():
    from tokenferry.compat.dlinfer_moe import fused_moe_all2all_with_kernel

    def body(comm):
        x, _, _, w13, w2, own = moe_case(comm.rank, comm.size)
        logits = np.random.default_rng(50 + comm.rank).standard_normal((len(x), E)).astype(np.float32)
        shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        ids = np.argsort(-logits, axis=1)[:, :K]
        weights = np.take_along_axis(shares, ids, 1)
        weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)

        def kernel(rows, group_list, scale):
            assert scale == 1 and group_list.sum() == len(rows)
            parts = np.split(rows, np.cumsum(group_list)[:-1])
            done = [moe_expected(p, np.full((len(p), 1), own.start + l), np.ones((len(p), 1), np.float32), w13, w2)
                    for l, p in enumerate(parts)]
            return np.concatenate(done)

        y = fused_moe_all2all_with_kernel(x, logits, K, True, comm, kernel, dict(scale=1))
        np.testing.assert_allclose(y, moe_expected(x, ids, weights, w13, w2), rtol=1e-3, atol=1e-4)

    ranks.in_threads(2, body)


@pytest.mark.parametrize("physical", [False, True])
def test_sgl_jax(physical):
    from tokenferry.compat.sgl_jax_moe import fused_ep_moe_from_topk

    def body(comm):
        x, ids, weights, w13, w2, own = moe_case(comm.rank, comm.size)
        w1, w3 = w13[own, :48].transpose(0, 2, 1).copy(), w13[own, 48:].transpose(0, 2, 1).copy()
        y = fused_ep_moe_from_topk(x, w1, w2[own].transpose(0, 2, 1).copy(), w3, weights, ids, comm=comm,
                                   physical_ids=physical)
        np.testing.assert_allclose(y, moe_expected(x, ids, weights, w13, w2), rtol=1e-3, atol=1e-4)

    ranks.in_threads(2, body)
