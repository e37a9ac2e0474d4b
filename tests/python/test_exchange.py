"""The four phases and moe_forward, against what a loop over tokens gives. Numbers are small integers,
so that no order of sums and no wire rounds them."""

import gc

import numpy as np
import pytest
import ranks
import tokenferry

E, K, H, M = 6, 3, 64, 8
PLAIN = dict(num_experts=E, topk=K, hidden=H, max_tokens=M, dispatch_dtype="f32", combine_dtype="f32")


def tokens_of(rank, count, dtype=np.int64):
    """Every value differs from its neighbours'; one id of none."""
    rng = np.random.default_rng(rank)
    x = rng.integers(-8, 8, (count, H)).astype(np.float32)
    ids = np.stack([rng.permutation(E)[:K] for _ in range(count)] or [np.zeros(K)]).astype(dtype)[:count]
    if count:
        ids[0, 1] = -1
    weights = rng.integers(1, 4, (count, K)).astype(np.float32)
    return x, ids, weights


def expert(e, x):
    return x * (e + 2)


def expected(x, ids, weights):
    out = np.zeros_like(x)
    for t in range(len(x)):
        for k in range(K):
            if ids[t, k] >= 0:
                out[t] += weights[t, k] * expert(ids[t, k], x[t])
    return out


def run_experts(rows, first_slot):
    """Whatever the layout."""
    x, out = rows.x, rows.out
    for slot, (count, offset) in enumerate(zip(rows.counts, rows.offsets)):
        if rows.layout == "padded":
            out[slot, :count] = expert(first_slot + slot, x[slot, :count])
        else:
            out[offset : offset + count] = expert(first_slot + slot, x[offset : offset + count])


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("layout", ["padded", "ragged"])
def test_four_phases_give_weighted_sums(size, layout):
    def body(comm):
        a2a = tokenferry.AllToAll(comm, layout=layout, **PLAIN)
        x, ids, weights = tokens_of(comm.rank, [0, 5, M, 1][comm.rank])
        for _ in range(2):
            rows = a2a.dispatch(x, ids, weights)
            assert rows.layout == layout
            assert rows.num_rows == rows.counts.sum() == (rows.slots >= 0).sum()
            run_experts(rows, comm.rank * a2a.slots_per_rank)
            np.testing.assert_array_equal(a2a.combine(), expected(x, ids, weights))

    ranks.in_threads(size, body)


@pytest.mark.parametrize("backend", ["pplx", "deepep", "none", "mooncake", "alltoallv", "ascend_fuseep", "auto"])
def test_every_backend_in_shared_memory(backend):
    ranks.in_processes(2, forward_with_backend, backend)


def forward_with_backend(comm, backend):
    a2a = tokenferry.AllToAll(comm, backend=backend, **PLAIN)
    x, ids, weights = tokens_of(comm.rank, 5)
    first = comm.rank * a2a.slots_per_rank
    y = a2a.moe_forward_from_topk(x, ids, weights, lambda rows: run_experts(rows, first))
    np.testing.assert_array_equal(y, expected(x, ids, weights))


def test_ranks_that_share_tokens_by_columns():
    def body(comm):
        a2a = tokenferry.AllToAll(comm, backend="alltoallv", hidden_partition=True, **PLAIN)
        x, ids, weights = tokens_of(0, 5)
        own = slice(comm.rank * H // 2, (comm.rank + 1) * H // 2)
        first = comm.rank * a2a.slots_per_rank
        y = a2a.moe_forward_from_topk(x[:, own], ids, weights, lambda rows: run_experts(rows, first))
        np.testing.assert_array_equal(y, expected(x, ids, weights)[:, own])

    ranks.in_threads(2, body)


@pytest.mark.parametrize("id_type", [np.int32, np.uint32, np.int64])
def test_more_tokens_than_fit_and_ids_of_any_type(id_type):
    def body(comm):
        a2a = tokenferry.AllToAll(comm, **PLAIN)
        x, ids, weights = tokens_of(comm.rank, [3 * M + 1, 0][comm.rank])
        first = comm.rank * a2a.slots_per_rank
        calls = []

        def experts(rows):
            calls.append(rows)
            run_experts(rows, first)

        out = np.ones_like(x)
        given = ids.astype(np.int64).astype(id_type)  # -1 as u32 is 2^32 - 1
        returned = tokenferry.moe_forward_from_topk(a2a, x, given, weights, experts, out=out, accumulate=True)
        assert returned is out and len(calls) == 4
        np.testing.assert_array_equal(out, 1 + expected(x, ids, weights))
        with pytest.raises(tokenferry.StaleRows):
            calls[0].x

    ranks.in_threads(2, body)


def test_router_logits():
    def body(comm):
        a2a = tokenferry.AllToAll(comm, renormalize=True, **PLAIN)
        x, ids, _ = tokens_of(comm.rank, 4)
        ids[0] = [2, 0, 1]
        logits = np.full((4, E), -50, np.float32)
        np.put_along_axis(logits, ids, 1.0, axis=1)  # all chosen alike: a third each
        first = comm.rank * a2a.slots_per_rank
        y = tokenferry.moe_forward(a2a, x, logits, lambda rows: run_experts(rows, first))
        np.testing.assert_allclose(y, expected(x, ids, np.full((4, K), 1 / 3)), rtol=1e-5, atol=1e-4)

    ranks.in_threads(2, body)


def test_rows_are_stale_after_combine_send_and_arrays_keep_their_memory():
    def body(comm):
        a2a = tokenferry.AllToAll(comm, **PLAIN)
        x, ids, weights = tokens_of(comm.rank, 4)
        rows = a2a.dispatch(x, ids, weights)
        held_in, held_out = rows.x, rows.out
        run_experts(rows, comm.rank * a2a.slots_per_rank)
        a2a.combine()
        for attribute in ("x", "out", "counts", "offsets", "slots", "scales", "row_weights", "num_rows"):
            with pytest.raises(tokenferry.StaleRows, match="combine_send"):
                getattr(rows, attribute)
        comm.barrier()
        a2a.close()
        del a2a, rows
        gc.collect()
        comm.close()
        return held_in.sum() + held_out.sum()  # of whatever: the memory is there

    ranks.in_threads(2, body)


def test_hooks_poll_and_kept_routing():
    def body(comm):
        a2a = tokenferry.AllToAll(comm, **PLAIN)
        first = comm.rank * a2a.slots_per_rank
        x, ids, weights = tokens_of(comm.rank, 4)
        hook = a2a.dispatch(x, ids, weights, return_hook=True)
        while not a2a.poll():
            pass
        rows = hook()
        routing = a2a.keep_routing()
        run_experts(rows, first)
        finish = a2a.combine(return_hook=True)
        want = expected(x, ids, weights)
        np.testing.assert_array_equal(finish(), want)
        rows = a2a.dispatch(2 * x, ids, weights, routing=routing)
        run_experts(rows, first)
        np.testing.assert_array_equal(a2a.combine(), 2 * want)
        assert a2a.stats["exchanges"] == 2
        waits = a2a.wait_stats()
        assert [len(waits[name]) for name in ("dispatch_wait_ns", "combine_wait_ns", "rows_received")] == [2, 2, 2]
        assert waits["dispatch_wait_ns"][comm.rank] == waits["combine_wait_ns"][comm.rank] == 0
        mine = range(first, first + a2a.slots_per_rank)
        for source in range(2):
            ids_of = tokens_of(source, 4)[1]
            assert waits["rows_received"][source] == 2 * int(np.isin(ids_of, mine).sum())

    ranks.in_threads(2, body)


def test_bound_arrays_follow_their_contents():
    def body(comm):
        a2a = tokenferry.AllToAll(comm, **PLAIN)
        first = comm.rank * a2a.slots_per_rank
        x, ids, weights = tokens_of(comm.rank, 4)
        out = np.empty_like(x)
        bound = a2a.bind(x, ids, weights, out)
        for factor in (1, 3):
            x *= factor
            bound.dispatch_send()
            run_experts(bound.dispatch_recv(), first)
            bound.combine_send()
            bound.combine_recv()
            np.testing.assert_array_equal(out, expected(x, ids, weights))
        bound.moe_forward(lambda rows: run_experts(rows, first))
        np.testing.assert_array_equal(out, expected(x, ids, weights))

    ranks.in_threads(2, body)


def test_placement_and_physical_ids():
    def body(comm):
        a2a = tokenferry.AllToAll(comm, **PLAIN)
        slots = [5, 3, 1, 0, 2, 4]
        placement = tokenferry.Placement(slots, E, comm.size)
        x, ids, weights = tokens_of(comm.rank, 4)

        def experts(rows):
            for slot, count in enumerate(rows.counts):
                e = slots[comm.rank * a2a.slots_per_rank + slot]
                rows.out[slot, :count] = expert(e, rows.x[slot, :count])

        want = expected(x, ids, weights)
        y = a2a.moe_forward_from_topk(x, ids, weights, experts, placement=placement)
        np.testing.assert_array_equal(y, want)
        slot_of = np.argsort(slots)
        physical = np.where(ids < 0, -1, slot_of[np.maximum(ids, 0)])
        y = a2a.moe_forward_from_topk(x, physical, weights, experts, physical=True)
        np.testing.assert_array_equal(y, want)

    ranks.in_threads(2, body)


@pytest.mark.parametrize("dtype", ["bf16", "bfloat16", np.float32, np.dtype("float32"), "ml_dtypes"])
def test_types_by_any_of_their_names(dtype):
    import ml_dtypes

    def body(comm):
        chosen = ml_dtypes.bfloat16 if dtype == "ml_dtypes" else dtype
        options = PLAIN | dict(dispatch_dtype=chosen, combine_dtype=chosen, num_experts=np.int64(E))
        a2a = tokenferry.AllToAll(comm, **options)
        x, ids, weights = tokens_of(comm.rank, 4)
        bf16 = "float32" not in str(chosen)
        rows = a2a.dispatch(x, ids, weights)
        assert rows.x.dtype == rows.out.dtype == (ml_dtypes.bfloat16 if bf16 else np.float32)
        run_experts(rows, comm.rank * a2a.slots_per_rank)
        np.testing.assert_array_equal(a2a.combine(), expected(x, ids, weights))

    ranks.in_threads(2, body)


@pytest.mark.parametrize("wire", ["fp8", "fp8_pow2", "int8", "int8_block"])
def test_codes_with_scales_travel_as_they_are(wire):
    hidden = 256

    def body(comm):
        options = dict(PLAIN, hidden=hidden, dispatch_dtype=wire)
        a2a = tokenferry.AllToAll(comm, layout="ragged", row_alignment=1, **options)
        rng = np.random.default_rng(comm.rank)
        code_type = np.uint8 if wire.startswith("fp8") else np.int8
        codes = rng.integers(0, 100, (4, hidden)).astype(code_type)
        count = 1 if wire == "int8" else hidden // 128
        scales = rng.integers(100, 120, (4, count))
        scales = scales.astype(np.uint8 if wire == "fp8_pow2" else np.float32)
        _, ids, weights = tokens_of(comm.rank, 4)
        rows = a2a.dispatch(codes, ids, weights, scales=scales)
        got = rows.x.view(code_type) if rows.x.dtype.itemsize == 1 else rows.x
        assert got.shape == (rows.num_rows, hidden) and rows.scales.shape == (rows.num_rows, count)
        everyone = [np.random.default_rng(r).integers(0, 100, (4, hidden)).astype(code_type)
                    for r in range(comm.size)]
        for row in got:
            assert any((row == token).all() for tokens in everyone for token in tokens)
        own = rows.num_rows and rows.scales.dtype == scales.dtype
        rows.out[:] = 0
        assert own and not a2a.combine().any()

    ranks.in_threads(2, body)


def test_row_weights_go_with_the_rows():
    def body(comm):
        a2a = tokenferry.AllToAll(comm, row_weights=True, layout="ragged", row_alignment=1, **PLAIN)
        x, ids, weights = tokens_of(comm.rank, 4)

        def experts(rows):
            first = comm.rank * a2a.slots_per_rank
            for row in range(rows.num_rows):
                rows.out[row] = rows.row_weights[row] * expert(first + rows.slots[row], rows.x[row])

        y = a2a.moe_forward_from_topk(x, ids, weights, experts)
        np.testing.assert_array_equal(y, expected(x, ids, weights))

    ranks.in_threads(2, body)


def test_registered_input_is_where_tokens_may_be_written():
    def body(comm):
        a2a = tokenferry.AllToAll(comm, **PLAIN)
        x, ids, weights = tokens_of(comm.rank, 4)
        space = a2a.registered_input()
        assert space.shape == (M, H)
        space[:4] = x
        rows = a2a.dispatch(space[:4], ids, weights)
        run_experts(rows, comm.rank * a2a.slots_per_rank)
        np.testing.assert_array_equal(a2a.combine(), expected(x, ids, weights))

    ranks.in_threads(2, body)
