"""What DeepEP's own tests of V2 assert, asserted on our ElasticBuffer: rows, metadata, expanded layouts, counts, cached
dispatch, sums in their order, and hosts."""

import numpy as np
import pytest
import ranks
import tokenferry
from frameworks import FRAMEWORKS, make, read, torch
from tokenferry.compat import deep_ep
from tokenferry.compat.deep_ep.domains import RANKS_PER_HOST

T, H, E, K = 10, 256, 8, 3


def case(rank, tokens=T):
    """Random choices with holes, the first token without any; rows whose values say whose they are."""
    rng = np.random.default_rng(50 + rank)
    ids = np.stack([rng.permutation(E)[:K] for _ in range(tokens)] or [np.zeros(K)])[:tokens].astype(np.int64)
    if tokens:
        ids[rng.integers(0, tokens, 4), rng.integers(0, K, 4)] = -1
        ids[0] = -1
    x = (np.arange(tokens)[:, None] + 100 * rank + np.zeros((1, H))).astype(np.float32)
    return x, ids, rng.random((tokens, K), np.float32)


def tokens_of(rank):
    return [T, 0, T - 3, 1][rank]


def coming(rank, size):
    """(number, local ids, weights) of the tokens that come to a rank, in order."""
    local, out = E // size, []
    for source in range(size):
        _, ids, weights = case(source, tokens_of(source))
        for t in range(len(ids)):
            mine = (ids[t] >= 0) & (ids[t] // local == rank)
            if mine.any():
                out.append((source * T + t, np.where(mine, ids[t] % local, -1), weights[t]))
    return out


def values(numbers):
    """What case() gave these tokens."""
    return (np.asarray(numbers) // T * 100 + np.asarray(numbers) % T).astype(np.float32)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("size", [1, 2, 4])
def test_rows_come_in_order_with_their_metadata(framework, size):
    def body(comm):
        buffer = deep_ep.ElasticBuffer(comm, num_max_tokens_per_rank=T, hidden=H)
        assert buffer.get_logical_domain_size() == (1, size) and buffer.scaleup_rank_idx == comm.rank
        x, ids, weights = case(comm.rank, tokens_of(comm.rank))
        stats = make(np.ones(E // size, np.int32), framework)
        recv, recv_ids, recv_weights, handle, event = buffer.dispatch(
            make(x, framework, "bfloat16"), make(ids, framework), make(weights, framework), stats, num_experts=E,
            expert_alignment=4)
        event.current_stream_wait()
        want = coming(comm.rank, size)
        numbers = [number for number, _, _ in want]
        np.testing.assert_array_equal(read(handle.recv_src_metadata, int)[:, 0], numbers)
        np.testing.assert_array_equal(read(recv), np.repeat(values(numbers)[:, None], H, axis=1))
        np.testing.assert_array_equal(read(recv_ids, int), [i for _, i, _ in want] or np.zeros((0, K)))
        np.testing.assert_array_equal(read(recv_weights), [w for _, _, w in want] or np.zeros((0, K)))
        counts = np.array([sum((i == e).sum() for _, i, _ in want) for e in range(E // size)])
        aligned = -(-counts // 4) * 4
        np.testing.assert_array_equal(read(stats, int), 1 + counts)
        assert handle.num_recv_tokens_per_expert_list == aligned.tolist()
        np.testing.assert_array_equal(read(handle.psum_num_recv_tokens_per_expert, int), np.cumsum(aligned))
        np.testing.assert_array_equal(read(handle.psum_num_recv_tokens_per_scaleup_rank, int),
                                      np.cumsum([sum(n // T == r for n in numbers) for r in range(size)]))
        # Ones back from everybody: as many as ranks compute the token.
        ones = make(np.ones((len(want), H), np.float32), framework, "bfloat16")
        back, back_weights, _ = buffer.combine(ones, handle, topk_weights=recv_weights)
        there = np.array([len(set(i[i >= 0] // (E // size))) for i in ids], np.float32).reshape(-1, 1)
        np.testing.assert_array_equal(read(back), there + np.zeros((1, H)))
        np.testing.assert_array_equal(read(back_weights), np.where(ids >= 0, weights, 0))

    ranks.in_threads(size, body)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("several", [True, False])
def test_expanded_rows_are_grouped_by_expert(framework, several):
    size, alignment = 2, 4

    def body(comm):
        buffer = deep_ep.ElasticBuffer(comm, num_max_tokens_per_rank=T, allow_multiple_reduction=several)
        x, ids, weights = case(comm.rank, tokens_of(comm.rank))
        sent = make(x, framework, "bfloat16")
        recv, none, recv_weights, handle, _ = buffer.dispatch(
            sent, make(ids, framework), make(weights, framework), num_experts=E, expert_alignment=alignment, do_expand=True)
        want = coming(comm.rank, size)
        assert none is None and handle.do_expand
        metadata = read(handle.recv_src_metadata, int)
        rows, row_weights = read(recv), read(recv_weights)
        begin, seen = 0, np.zeros(len(rows), bool)
        for e in range(E // size):
            mine = [(n, i, w, m) for (n, i, w), m in zip(want, metadata[:, 2:]) if (i == e).any()]
            at = [m[i == e][0] for _, i, _, m in mine]
            assert sorted(at) == list(range(begin, begin + len(mine)))
            np.testing.assert_array_equal(rows[at, 0], values([n for n, _, _, _ in mine]))
            np.testing.assert_array_equal(row_weights[at], [w[i == e][0] for _, i, w, _ in mine])
            seen[at] = True
            assert read(handle.psum_num_recv_tokens_per_expert, int)[e] == begin + len(mine)
            assert read(handle.num_unaligned_recv_tokens_per_expert, int)[e] == len(mine)
            begin += -(-len(mine) // alignment) * alignment
        assert len(rows) == begin and (rows[~seen] == 0).all() and (row_weights[~seen] == 0).all()
        np.testing.assert_array_equal(metadata[:, 2:] >= 0, [i >= 0 for _, i, _ in want] or np.zeros((0, K), bool))
        # A cached dispatch of other rows goes to the same places.
        doubled = make(2 * x, framework, "bfloat16")
        again, _, none, same, _ = buffer.dispatch(doubled, handle=handle, do_expand=True, do_zero_padding=True)
        assert same is handle and none is None
        np.testing.assert_array_equal(read(again), 2 * rows)
        back, back_weights, _ = buffer.combine(recv, handle, topk_weights=recv_weights,
                                               bias=(doubled, make(np.ones_like(x), framework, "bfloat16")))
        chosen = (ids >= 0).sum(axis=1, keepdims=True)
        np.testing.assert_array_equal(read(back), read(make(x * chosen + 2 * x + 1, framework, "bfloat16")))
        np.testing.assert_array_equal(read(back_weights), np.where(ids >= 0, weights, 0))

    ranks.in_threads(size, body)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_without_a_wait_for_counts_tensors_have_their_worst_size(framework):
    size = 2

    def body(comm):
        buffer = deep_ep.ElasticBuffer(comm, num_max_tokens_per_rank=T)
        x, ids, _ = case(comm.rank, tokens_of(comm.rank))
        recv, recv_ids, none, handle, _ = buffer.dispatch(make(x, framework, "bfloat16"), make(ids, framework),
                                                          num_experts=E, do_cpu_sync=False)
        count = len(coming(comm.rank, size))
        assert none is None and handle.num_recv_tokens_per_expert_list == []
        assert recv.shape[0] == recv_ids.shape[0] == handle.recv_src_metadata.shape[0] == size * T
        assert (read(recv_ids, int)[count:] == -1).all() and (read(recv)[count:] == 0).all()
        assert int(handle.psum_num_recv_tokens_per_scaleup_rank[-1]) == count
        back, _, _ = buffer.combine(recv, handle)
        there = np.array([len(set(i[i >= 0] // (E // size))) for i in ids], np.float32).reshape(-1, 1)
        np.testing.assert_array_equal(read(back), x * there)
        expanded = buffer.dispatch(make(x, framework, "bfloat16"), make(ids, framework), num_experts=E, do_cpu_sync=False,
                                   do_expand=True, expert_alignment=8)[0]
        assert expanded.shape[0] == -(-(size * T * K + 7 * (E // size)) // 8) * 8

    ranks.in_threads(size, body)


@pytest.mark.skipif(torch is None, reason="torch is not installed: fp8 with column-major scales is not tested")
def test_fp8_with_scales_of_either_order():
    def body(comm):
        buffer = deep_ep.ElasticBuffer(comm, num_max_tokens_per_rank=T)
        _, ids, _ = case(comm.rank, tokens_of(comm.rank))
        codes = torch.arange(len(ids) * H, dtype=torch.int32).remainder(100).to(torch.uint8).reshape(-1, H).view(torch.float8_e4m3fn)
        scales = torch.rand(len(ids), H // 128).T.contiguous().T
        got = {}
        for column_major in (False, True):
            (rows, factors), _, _, handle, _ = buffer.dispatch((codes, scales), torch.from_numpy(ids), num_experts=E,
                                                               use_tma_aligned_col_major_sf=column_major)
            assert rows.dtype == torch.float8_e4m3fn
            assert factors.stride() == ((1, -(-len(rows) // 4) * 4) if column_major else (H // 128, 1))
            got[column_major] = rows.view(torch.uint8), factors
        assert torch.equal(got[False][0], got[True][0]) and torch.equal(got[False][1], got[True][1])
        own = [n for n in handle.recv_src_metadata[:, 0].tolist() if n // T == comm.rank]
        first = sum(n // T < comm.rank for n in handle.recv_src_metadata[:, 0].tolist())
        assert torch.equal(got[True][1][first : first + len(own)], scales[[n % T for n in own]])

    ranks.in_threads(2, body)


def rounded(x):
    """To bfloat16 and back."""
    import ml_dtypes

    return x.astype(ml_dtypes.bfloat16).astype(np.float32)


def test_sums_are_rounded_at_each_rank_and_host(monkeypatch):
    """Four ranks that count as two hosts: what a token's experts give is rounded at the rank, then at the host."""
    monkeypatch.setenv(RANKS_PER_HOST, "2")
    size, local = 4, E // 4
    answers = np.random.default_rng(3).standard_normal((size * T, E, H)).astype(np.float32)

    def body(comm):
        buffer = deep_ep.ElasticBuffer(comm, num_max_tokens_per_rank=T)
        assert buffer.get_physical_domain_size() == buffer.get_logical_domain_size() == (2, 2)
        assert deep_ep.get_logical_domain_size(comm, False) == (1, 4)
        assert (buffer.scaleout_rank_idx, buffer.scaleup_rank_idx) == divmod(comm.rank, 2)
        x, ids, _ = case(comm.rank, tokens_of(comm.rank))
        recv, _, _, handle, _ = buffer.dispatch(make(x, "numpy", "bfloat16"), ids, num_experts=E, do_expand=True)
        metadata = handle.recv_src_metadata
        assert handle.psum_num_recv_tokens_per_scaleup_rank.tolist() == [
            sum(n // T % 2 <= r for n in metadata[:, 0]) for r in range(2)]
        y = np.zeros((len(recv), H), np.float32)
        for row, (number, ids_here, _) in zip(metadata, coming(comm.rank, size)):
            for k in np.flatnonzero(ids_here >= 0):
                y[row[2 + k]] = answers[number, comm.rank * local + ids_here[k]]
        back, _, _ = buffer.combine(make(y, "numpy", "bfloat16"), handle)
        for t in range(len(ids)):
            hosts = {}
            for k in np.flatnonzero(ids[t] >= 0):
                rank = ids[t, k] // local
                part = hosts.setdefault(rank // 2, {}).setdefault(rank, [])
                part.append((k, rounded(answers[comm.rank * T + t, ids[t, k]])))
            sums = []
            for of_host in hosts.values():
                of_ranks = sorted((part[-1][0], rounded(sum(v for _, v in part))) for part in of_host.values())
                sums.append((of_ranks[-1][0], rounded(sum(v for _, v in of_ranks))))
            want = sum((v for _, v in sorted(sums)), np.zeros(H, np.float32))
            np.testing.assert_array_equal(read(back)[t], rounded(want))

    ranks.in_threads(size, body)


def test_internode_calls_of_v1(monkeypatch):
    monkeypatch.setenv(RANKS_PER_HOST, "2")

    def body(comm):
        buffer = deep_ep.Buffer(comm)
        assert buffer.num_rdma_ranks == 2
        x, ids, weights = case(comm.rank, tokens_of(comm.rank))
        per_rank, per_host, per_expert, in_rank, _ = buffer.get_dispatch_layout(ids, E)
        np.testing.assert_array_equal(per_host, [in_rank[:, :2].any(axis=1).sum(), in_rank[:, 2:].any(axis=1).sum()])
        recv, recv_ids, recv_weights, counts, handle, _ = buffer.internode_dispatch(
            make(x, "numpy", "bfloat16"), None, per_rank, per_host, in_rank, per_expert, ids, weights, config=deep_ep.Config())
        want = coming(comm.rank, 4)
        np.testing.assert_array_equal(read(recv)[:, 0], values([n for n, _, _ in want]))
        np.testing.assert_array_equal(handle[-4], np.cumsum([sum(n // T == r for n, _, _ in want) for r in range(4)]))
        np.testing.assert_array_equal(handle.recv_rdma_rank_prefix_sum, handle[-4][1::2])
        assert counts == [sum((i == e).sum() for _, i, _ in want) for e in range(E // 4)]
        cached = buffer.dispatch(make(2 * x, "numpy", "bfloat16"), handle=handle)[0]
        np.testing.assert_array_equal(read(cached), 2 * read(recv))
        back, back_weights, _ = buffer.internode_combine(recv, handle, recv_weights, config=deep_ep.Config())
        np.testing.assert_array_equal(read(back), rounded(x * in_rank.sum(axis=1, keepdims=True)))
        np.testing.assert_array_equal(back_weights, np.where(ids >= 0, weights, 0))

    ranks.in_threads(4, body)


def test_what_cannot_be_is_refused(monkeypatch):
    def body(comm):
        buffer = deep_ep.ElasticBuffer(comm, num_max_tokens_per_rank=T)
        x, ids, weights = case(0)
        x = make(x, "numpy", "bfloat16")
        handle = buffer.dispatch(x, ids, weights, num_experts=E)[3]
        for arguments, text in (
            (dict(), "topk_idx or a handle"),
            (dict(topk_idx=ids, handle=handle), "takes no topk_idx"),
            (dict(handle=handle, do_cpu_sync=True), "no do_cpu_sync"),
            (dict(handle=handle, do_expand=True), "expands as the one"),
            (dict(handle=handle, num_experts=2 * E), "has its number"),
            (dict(topk_idx=ids), "None experts"),
            (dict(topk_idx=ids, num_experts=E, num_max_tokens_per_rank=T - 1), "num_max_tokens_per_rank is 9"),
        ):
            with pytest.raises(tokenferry.ConfigError, match=text):
                buffer.dispatch(x, **arguments)
        with pytest.raises(tokenferry.ConfigError, match="process group"):
            buffer.pp_set_config(16, 1)
        with pytest.raises(tokenferry.Error, match="session"):
            buffer.all_gather(x)
        with pytest.raises(tokenferry.Error, match="before engram_write"):
            buffer.engram_fetch(ids)
        buffer.destroy()
        for given in ("0", "x", "2"):
            monkeypatch.setenv(RANKS_PER_HOST, given)
            with pytest.raises(tokenferry.ConfigError, match="divisor of the 1 ranks"):
                deep_ep.get_physical_domain_size(comm)

    ranks.in_threads(1, body)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_all_gather_and_engram(framework):
    def body(comm):
        buffer = deep_ep.ElasticBuffer(comm)
        mine = make(np.full((2, 4), comm.rank, np.float32), framework, "bfloat16")
        with buffer.agrs_new_session():
            one, wait = buffer.all_gather(mine)
            wait()
            first, second, _ = buffer.all_gather((mine, mine))
        for gathered in (one, first, second):
            np.testing.assert_array_equal(read(gathered)[:, 0, 0], range(comm.size))
        entries = np.arange(5 * 4, dtype=np.float32).reshape(5, 4) + 1000 * comm.rank
        every = np.concatenate([entries - 1000 * (comm.rank - r) for r in range(comm.size)])
        scales = np.arange(5 * comm.size, dtype=np.float32)[:, None]
        at = np.array([[0, 7], [9, 7], [2, 14]], np.int32)
        buffer.engram_write(make(entries, framework), make(scales, framework))
        for column_major in (False, True):
            data, factors = buffer.engram_fetch(make(at, framework), use_tma_aligned_col_major_sf=column_major)()
            np.testing.assert_array_equal(read(data), every[at].reshape(3, 8))
            np.testing.assert_array_equal(read(factors), at)

    ranks.in_threads(3, body)
