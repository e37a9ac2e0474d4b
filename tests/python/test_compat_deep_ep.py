"""What DeepEP's own tests of V1 assert, asserted on ours: layouts, order of rows, handles, padding,
sums, fp8 with its scales, hooks, statistics, masks."""

import numpy as np
import pytest
import ranks
import tokenferry
from frameworks import FRAMEWORKS, make, read
from tokenferry.compat import deep_ep
from tokenferry.compat.deep_ep.buffer import Buffer

T, H, E, K = 12, 512, 8, 3


def case(rank, size, tokens=T):
    """Random choices with holes; rows that say whose they are."""
    rng = np.random.default_rng(100 + rank)
    ids = np.stack([rng.permutation(E)[:K] for _ in range(tokens)]).astype(np.int64)
    ids[rng.integers(0, tokens, 4), rng.integers(0, K, 4)] = -1
    weights = rng.random((tokens, K), np.float32)
    return np.full((tokens, H), rank + 1, np.float32), ids, weights, rng


def ranks_of(ids, size):
    out = np.zeros((len(ids), size), bool)
    for t, k in zip(*np.nonzero(ids >= 0)):
        out[t, ids[t, k] // (E // size)] = True
    return out


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("size", [1, 2, 4])
def test_layout(framework, size):
    def body(comm):
        buffer = Buffer(comm)
        _, ids, _, _ = case(comm.rank, size)
        per_rank, per_rdma, per_expert, in_rank, event = buffer.get_dispatch_layout(make(ids, framework), E)
        assert per_rdma is None and isinstance(event, deep_ep.EventOverlap)
        want = ranks_of(ids, size)
        np.testing.assert_array_equal(read(in_rank, bool), want)
        np.testing.assert_array_equal(read(per_rank, int), want.sum(axis=0))
        np.testing.assert_array_equal(read(per_expert, int), [(ids == e).sum() for e in range(E)])

    ranks.in_threads(size, body)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("size", [2, 4])
def test_normal_mode_brings_rows_in_order_of_ranks_and_adds_them_up(framework, fp8, size):
    def body(comm):
        rank, local = comm.rank, E // size
        buffer = Buffer(comm)
        x, ids, weights, rng = case(rank, size)
        everyone = [case(r, size)[1] for r in range(size)]
        per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(make(ids, framework), E)
        if fp8:
            codes = rng.integers(0, 100, (T, H)).astype(np.uint8)
            scales = np.full((T, H // 128), rank + 1, np.float32)
            sent = (make(codes, framework), make(scales, framework))
            if framework == "torch":
                sent = (sent[0].view(make_fp8()), sent[1].T.contiguous().T)
        else:
            sent = make(x, framework, "bfloat16")
        arguments = dict(num_tokens_per_rank=per_rank, is_token_in_rank=in_rank, num_tokens_per_expert=per_expert,
                         config=deep_ep.Config(20, 8, 256), async_finish=True, previous_event=Buffer.capture())
        recv, recv_ids, recv_weights, counts, handle, event = buffer.dispatch(
            sent, topk_idx=make(ids, framework), topk_weights=make(weights, framework), **arguments)
        event.current_stream_wait()
        rows = recv[1] if fp8 else recv  # scales say whose row it is as well
        expected = [ranks_of(theirs, size)[:, rank] for theirs in everyone]
        prefix = read(handle[0], int)
        np.testing.assert_array_equal(prefix[:, rank], np.cumsum([m.sum() for m in expected]))
        begin = 0
        for source, end in enumerate(prefix[:, rank]):
            assert (read(rows)[begin:end] == source + 1).all()
            want = everyone[source][expected[source]]
            mine = (want >= 0) & (want // local == rank)
            np.testing.assert_array_equal(read(recv_ids, int)[begin:end], np.where(mine, want % local, -1))
            np.testing.assert_array_equal(
                read(recv_weights)[begin:end],
                np.where(mine, case(source, size)[2][expected[source]], 0))
            np.testing.assert_array_equal(read(handle[3], int)[begin:end], np.flatnonzero(expected[source]))
            begin = end
        assert begin == rows.shape[0]
        total = [(read(recv_ids, int) == e).sum() for e in range(local)]
        assert counts == total
        check_worst_and_cached(buffer, framework, sent, ids, weights, arguments, recv, recv_ids, handle, fp8)
        aligned = buffer.dispatch(sent, topk_idx=make(ids, framework), expert_alignment=8, **arguments)[3]
        assert aligned == [-(-n // 8) * 8 for n in total]
        without = buffer.dispatch(sent, **arguments)
        assert without[1] is None and without[2] is None and without[3] == total
        if fp8:
            return
        bias = make(np.full((T, H), 5, np.float32), framework, "bfloat16")
        combined, combined_weights, _ = buffer.combine(recv, handle, topk_weights=recv_weights, bias=bias)
        np.testing.assert_array_equal(read(combined), x * ranks_of(ids, size).sum(axis=1, keepdims=True) + 5)
        np.testing.assert_array_equal(read(combined_weights), np.where(ids >= 0, weights, 0))
        again, none, _ = buffer.combine(recv, handle)
        assert none is None
        np.testing.assert_array_equal(read(again), read(combined) - 5)

    def make_fp8():
        import torch

        return torch.float8_e4m3fn

    def check_worst_and_cached(buffer, framework, sent, ids, weights, arguments, recv, recv_ids, handle, fp8):
        first = lambda r: r[1] if fp8 else r  # noqa: E731
        worst = T * buffer.group_size
        padded, padded_ids, padded_weights, empty, _, _ = buffer.dispatch(
            sent, topk_idx=make(ids, framework), topk_weights=make(weights, framework), num_worst_tokens=worst,
            **arguments)
        count = first(recv).shape[0]
        assert empty == [] and first(padded).shape[0] == padded_ids.shape[0] == padded_weights.shape[0] == worst
        np.testing.assert_array_equal(read(first(padded))[:count], read(first(recv)))
        np.testing.assert_array_equal(read(padded_ids, int)[:count], read(recv_ids, int))
        assert (read(padded_ids, int)[count:] == -1).all()
        cached = buffer.dispatch(sent, handle=handle)
        assert cached[1:5] == (None, None, None, None)
        np.testing.assert_array_equal(read(first(cached[0])), read(first(recv)))

    ranks.in_threads(size, body)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("mode", ["bf16", "fp8", "round", "ue8m0"])
@pytest.mark.parametrize("hook", [False, True])
def test_low_latency(framework, mode, hook):
    size, most = 2, T + 2

    def body(comm):
        rank, local = comm.rank, E // size
        buffer = Buffer(comm, low_latency_mode=True, num_qps_per_rank=local)
        _, ids, weights, _ = case(rank, size)
        everyone = [case(r, size)[1] for r in range(size)]
        x = np.full((T, H), rank - 128, np.float32)
        x[:, -128:] = np.arange(T)[:, None]
        sent = make(x, framework, "bfloat16")
        stats = make(np.zeros(local, np.int32), framework)
        waits = make(np.zeros((size, size), np.int64), framework)
        options = dict(use_fp8=mode != "bf16", round_scale=mode in ("round", "ue8m0"), use_ue8m0=mode == "ue8m0")
        for _ in range(2):  # one that nobody combines
            recv, count, handle, event, run = buffer.low_latency_dispatch(
                sent, make(ids, framework), most, E, cumulative_local_expert_recv_stats=stats,
                dispatch_wait_recv_cost_stats=waits, return_recv_hook=hook, async_finish=not hook, **options)
            run() if hook else event.current_stream_wait()
        source, layout, m, hidden, experts = handle
        assert (m, hidden, experts) == (most, H, E)
        np.testing.assert_array_equal(read(stats, int), 2 * read(count, int))
        assert (read(waits, int) >= 0).all()
        values = decoded(recv, mode)
        if mode != "bf16":
            groups = H // 512 if mode == "ue8m0" else H // 128
            assert tuple(recv[1].shape) == (local, most * size, groups)
            strides = recv[1].stride() if framework == "torch" else np.array(recv[1].strides) // 4
            assert strides[-2] == 1  # column-major, as TMA wants them
        for e in range(local):
            expert, n = rank * local + e, read(count, int)[e]
            assert n == sum((theirs == expert).sum() for theirs in everyone)
            for j in range(size):
                begin, rows = read(layout, np.int64)[e, j] >> 32, read(layout, np.int64)[e, j] & 0xFFFFFFFF
                assert rows == (everyone[j] == expert).sum()
                part = values[e, begin : begin + rows]
                np.testing.assert_allclose(part[:, :-128], j - 128, rtol=0.04 if "bf16" not in mode else 0)
                tokens = read(source, int)[e, begin : begin + rows]
                np.testing.assert_array_equal(tokens, np.flatnonzero((everyone[j] == expert).any(axis=1)))
                np.testing.assert_allclose(part[:, -1], tokens, rtol=0.07)
        check_combine(buffer, framework, recv, values, ids, weights, handle, mode, hook, x)

    def decoded(recv, mode):
        if mode == "bf16":
            return read(recv)
        codes, scales = recv
        raw = codes.view(__import__("torch").float8_e4m3fn) if hasattr(codes, "is_contiguous") else codes
        if mode == "ue8m0":
            packed = np.ascontiguousarray(read(scales, np.int32))
            scales = (packed.view(np.uint8).astype(np.uint32) << 23).view(np.float32)
            return fp8_values(raw) * np.repeat(scales, 128, axis=2)
        return fp8_values(raw) * np.repeat(read(scales), 128, axis=2)

    def fp8_values(codes):
        if isinstance(codes, np.ndarray) and codes.dtype == np.uint8:
            import ml_dtypes

            codes = codes.view(ml_dtypes.float8_e4m3fn)
        return read(codes)

    def check_combine(buffer, framework, recv, values, ids, weights, handle, mode, hook, x):
        rows = make(values, framework, "bfloat16")
        want = x * np.where(ids >= 0, weights, 0).sum(axis=1, keepdims=True)
        for zero_copy in (False, True):
            if zero_copy:
                space = buffer.get_next_low_latency_combine_buffer(handle)
                space[:] = rows
            out = make(np.zeros((T, H), np.float32), framework, "bfloat16")
            combined, event, run = buffer.low_latency_combine(
                rows, make(ids, framework), make(weights, framework), handle, zero_copy=zero_copy, out=out,
                return_recv_hook=hook)
            run() if hook else event.current_stream_wait()
            assert combined is out
            np.testing.assert_allclose(read(out), want, rtol=0.01 if mode == "bf16" else 0.08, atol=1e-3)

    ranks.in_threads(size, body)


@pytest.mark.parametrize("tokens", [0, 1])
@pytest.mark.parametrize("mode", [dict(use_fp8=False), dict(), dict(round_scale=True, use_ue8m0=True)])
def test_ranks_and_experts_without_tokens(tokens, mode):
    def body(comm):
        buffer = Buffer(comm)
        x, ids, weights, _ = case(comm.rank, 2, max(1, tokens))
        x, ids, weights = make(x, "numpy", "bfloat16")[:tokens], np.zeros_like(ids)[:tokens], weights[:tokens]
        ids[:, 1:] = -1  # expert 0 gets all there is
        recv, count, handle, _, _ = buffer.low_latency_dispatch(x, ids, 4, E, **mode)
        assert count.tolist() == [2 * tokens * (comm.rank == 0)] + [0] * (E // 2 - 1)
        rows = make(np.ones((E // 2, 8, H), np.float32), "numpy", "bfloat16")
        combined, _, _ = buffer.low_latency_combine(rows, ids, weights, handle)
        np.testing.assert_allclose(read(combined), np.repeat(weights[:, :1], H, 1), rtol=0.01)
        buffer.clean_low_latency_buffer(4, H, E)
        layout = buffer.get_dispatch_layout(ids, E)
        recv, recv_ids, _, counts, handle, _ = buffer.dispatch(
            x, num_tokens_per_rank=layout[0], is_token_in_rank=layout[3], num_tokens_per_expert=layout[2],
            topk_idx=ids, topk_weights=weights)
        assert recv.shape == (2 * tokens * (comm.rank == 0), H) and sum(counts) == recv.shape[0]
        assert buffer.combine(recv, handle)[0].shape == (tokens, H)

    ranks.in_threads(2, body)


def lose_a_rank(comm, doomed):
    buffer = Buffer(comm, low_latency_mode=True, enable_shrink=True)
    x, ids, weights, _ = case(comm.rank, comm.size)
    x = make(x, "numpy", "bfloat16")
    buffer.low_latency_dispatch(x, ids, T, E, use_fp8=False)
    if comm.rank == doomed:
        import os

        os._exit(1)
    status = np.zeros(comm.size, np.int32)
    recv, count, handle, _, _ = buffer.low_latency_dispatch(x, ids, T, E, use_fp8=False)
    buffer.low_latency_query_mask_buffer(status)
    assert status.tolist() == [int(r == doomed) for r in range(comm.size)]
    combined, _, _ = buffer.low_latency_combine(recv, ids, weights, handle)
    there = (ids >= 0) & (ids // (E // comm.size) != doomed)
    np.testing.assert_allclose(
        read(combined), (comm.rank + 1) * np.repeat(np.where(there, weights, 0).sum(axis=1)[:, None], H, 1), rtol=0.01)
    with pytest.raises(tokenferry.ConfigError, match="masked"):
        buffer.low_latency_clean_mask_buffer()
    return count.sum()


def test_ranks_that_die_are_masked_and_the_others_go_on():
    with ranks.Processes(4, lose_a_rank, 2) as processes:
        found = processes.collect(3)
    assert sorted(found) == [0, 1, 3]
    for good, result in found.values():
        assert good, result


def long_messages(comm):
    buffer = Buffer(comm)
    tokens, hidden = 3000, 4096  # more bytes than an exchange's space: several rounds on the way
    x = np.full((tokens, hidden), comm.rank + 1, np.float32)
    x[:, 0] = np.arange(tokens) % 256
    ids = np.full((tokens if comm.rank == 0 else 1, 1), 1 if comm.rank == 0 else 0, np.int64)
    x = make(x[: len(ids)], "numpy", "bfloat16")
    per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(ids, 2)
    recv, _, _, _, handle, _ = buffer.dispatch(x, num_tokens_per_rank=per_rank, is_token_in_rank=in_rank,
                                               num_tokens_per_expert=per_expert)
    assert recv.shape[0] == (1 if comm.rank == 0 else tokens)
    combined, _, _ = buffer.combine(recv, handle)
    np.testing.assert_array_equal(read(combined), read(x))


def test_messages_longer_than_the_space_go_in_rounds():
    ranks.in_processes(2, long_messages)


def test_what_cannot_be_is_refused():
    def body(comm):
        buffer = Buffer(comm)
        x, ids, _, _ = case(0, 1)
        x = make(x, "numpy", "bfloat16")
        for call, text in [
            (lambda: buffer.dispatch(x), "get_dispatch_layout"),
            (lambda: buffer.low_latency_dispatch(x, ids, 2, E), "num_max_dispatch"),
            (lambda: buffer.low_latency_dispatch(x[:, :200], ids, T, E), "200"),
            (lambda: buffer.low_latency_dispatch(x, ids, T, E, use_ue8m0=True), "use_ue8m0"),
            (lambda: buffer.low_latency_combine(x, ids, ids, (ids, ids, T, H, E), zero_copy=True), "zero_copy"),
        ]:
            with pytest.raises(tokenferry.ConfigError, match=text):
                call()

    ranks.in_threads(1, body)


def test_enable_makes_it_importable():
    assert tokenferry.compat.enable("deep_ep") is deep_ep
    import deep_ep as imported
    from deep_ep.utils.testing import bench

    assert imported.Buffer is Buffer and bench(lambda: None)[0] >= 0
    with pytest.raises(tokenferry.ConfigError, match="pplx_kernels"):
        tokenferry.compat.enable("nothing_like_it")
