"""DeviceAllToAll over an emulated GPU, whose memory DLPack calls CUDA's. Numbers are small integers, so that
no order of sums rounds them."""

import importlib.machinery
import importlib.util

import numpy as np
import pytest
import ranks
import tokenferry

E, K, H, M, SIZE = 6, 2, 32, 4, 2
OPTIONS = dict(num_experts=E, topk=K, hidden=H, max_tokens=M, dispatch_dtype="f32", combine_dtype="f32", timeout=20)


def _emulated():
    path = tokenferry._core.__file__
    loader = importlib.machinery.ExtensionFileLoader("_emulated", path)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("_emulated", loader))
    loader.exec_module(module)
    return module


gpu = _emulated()


def host(array, dtype=np.float32):
    values = np.empty(gpu.shape(array), dtype)
    gpu.download(array, values)
    return values


def tokens_of(rank, count):
    rng = np.random.default_rng(rank)
    x = rng.integers(-8, 8, (count, H)).astype(np.float32)
    ids = np.stack([rng.permutation(E)[:K] for _ in range(count)]).astype(np.int32)
    weights = rng.integers(1, 4, (count, K)).astype(np.float32)
    ids[0, 1] = -1
    return x, ids, weights


def expected(x, ids, weights):
    """Expert e adds e to its rows."""
    kept = ids >= 0
    return ((x[:, None, :] + ids[:, :, None]) * (weights * kept)[:, :, None]).sum(1).astype(np.float32)


def experts_of(rank):
    def run(rows):
        slots = E // SIZE
        counts, offsets = host(rows.counts, np.int32), host(rows.offsets, np.int64)
        x = host(rows.x).reshape(-1, H)
        for slot in range(slots):
            for row in range(offsets[slot], offsets[slot] + counts[slot]):
                gpu.upload(rows.out, int(row) * H, x[row] + np.float32(rank * slots + slot))

    return run


def on_device(values):
    return [gpu.array(v) for v in values]


@pytest.mark.parametrize("backend, layout", [("pplx", "ragged"), ("pplx", "padded"), ("deepep", "ragged")])
def test_sums_are_those_of_the_loop(backend, layout):
    def body(comm):
        a2a = tokenferry.DeviceAllToAll(
            comm, backend=backend, deepep_mode="normal", layout=layout, device="cuda:0", **OPTIONS
        )
        for count in (M, 1, 3):
            x, ids, weights = tokens_of(comm.rank * 10 + count, count)
            out = gpu.array(np.full((count, H), 9, np.float32))
            given = on_device((x, ids, weights))
            assert a2a.moe_forward_from_topk(*given, experts_of(comm.rank), out=out) is out
            a2a.synchronise()
            np.testing.assert_array_equal(host(out), expected(x, ids, weights))
            a2a.moe_forward_from_topk(*given, experts_of(comm.rank), out=out, accumulate=True)
            a2a.synchronise()
            np.testing.assert_array_equal(host(out), 2 * expected(x, ids, weights))
        a2a.close()

    ranks.in_threads(SIZE, body)


def test_bound_arrays_and_a_number_of_tokens_on_the_device():
    def body(comm):
        a2a = tokenferry.DeviceAllToAll(comm, layout="ragged", **OPTIONS)
        x, ids, weights = tokens_of(comm.rank, M)
        arrays = on_device((x, ids, weights))
        out, number = gpu.array(np.zeros((M, H), np.float32)), gpu.array(np.array([M], np.int32))
        bound = a2a.bind(*arrays, out, number)
        for count in (M, 2, 0, 3):
            gpu.upload(number, 0, np.array([count], np.int32))
            gpu.upload(out, 0, np.full((M, H), 7, np.float32))
            bound.dispatch_send()
            experts_of(comm.rank)(bound.dispatch_recv())
            bound.combine_send()
            bound.combine_recv()
            a2a.synchronise()
            sums = host(out)
            np.testing.assert_array_equal(sums[:count], expected(x, ids, weights)[:count])
            assert (sums[count:] == 7).all()
        a2a.close()

    ranks.in_threads(SIZE, body)


@pytest.mark.parametrize("backend", ["pplx", "none"])
def test_registered_input_and_row_weights(backend):
    def body(comm):
        a2a = tokenferry.DeviceAllToAll(comm, backend=backend, layout="ragged", row_weights=True, **OPTIONS)
        x, ids, weights = tokens_of(comm.rank, M)
        ids[0] = [2, 3]
        stage = a2a.registered_input()
        gpu.upload(stage, 0, x)
        out = gpu.array(np.zeros((M, H), np.float32))

        def run(rows):
            of_row = host(rows.row_weights)
            values = host(rows.x)
            counts, offsets = host(rows.counts, np.int32), host(rows.offsets, np.int64)
            for slot in range(3):
                for row in range(offsets[slot], offsets[slot] + counts[slot]):
                    gpu.upload(rows.out, int(row) * H, values[row] * of_row[row])

        a2a.moe_forward_from_topk(stage, *on_device((ids, weights)), run, out=out)
        a2a.synchronise()
        np.testing.assert_array_equal(host(out), x * weights.sum(1)[:, None])
        a2a.close()

    ranks.in_threads(SIZE, body)


def test_rows_say_what_the_host_does_not_know_and_when_they_are_over():
    def body(comm):
        a2a = tokenferry.DeviceAllToAll(comm, layout="ragged", **OPTIONS)
        x, ids, weights = on_device(tokens_of(comm.rank, M))
        a2a.dispatch_send(x, ids, weights)
        rows = a2a.dispatch_recv()
        assert rows.layout == "ragged" and rows.scales is None
        for name in ("num_rows", "slots"):
            with pytest.raises(tokenferry.ConfigError, match="lie on the device"):
                getattr(rows, name)
        experts_of(comm.rank)(rows)
        a2a.combine_send()
        with pytest.raises(tokenferry.StaleRows):
            rows.x
        a2a.combine_recv(gpu.array(np.zeros((M, H), np.float32)))
        a2a.close()
        with pytest.raises(tokenferry.BrokenContract, match="closed"):
            a2a.synchronise()

    ranks.in_threads(SIZE, body)


def test_arrays_that_do_not_fit_are_refused_by_name():
    def body(comm):
        a2a = tokenferry.DeviceAllToAll(comm, **OPTIONS)
        x, ids, weights = tokens_of(comm.rank, M)
        on = on_device((x, ids, weights))
        refusals = [
            ((x, on[1], on[2]), "x lies on the CPU"),
            ((on[0], gpu.array(ids.astype(np.int64)), on[2]), "topk_ids is int64"),
            ((on[0], on[1], gpu.array(weights.astype(np.float64))), "topk_weights is float64"),
            ((on[0], gpu.array(ids[:2]), on[2]), "topk_ids is int32"),
            ((gpu.array(x[:, :16]), on[1], on[2]), "x is float32"),
            ((*on, gpu.array(np.array([1.0], np.float32))), "num_tokens is float32"),
            ((on[0], 3, on[2]), "memory of device 0"),
        ]
        for arrays, text in refusals:
            with pytest.raises(tokenferry.ConfigError, match=text):
                a2a.dispatch_send(*arrays)
        a2a.close()
        with pytest.raises(tokenferry.ConfigError, match="0..0"):
            tokenferry.DeviceAllToAll(comm, device=1, **OPTIONS)
        with pytest.raises(tokenferry.ConfigError, match="no tiles"):
            tokenferry.DeviceAllToAll(comm, backend="ascend_fuseep", **OPTIONS)
        with pytest.raises(tokenferry.ConfigError, match="'cuda:N'"):
            tokenferry.DeviceAllToAll(comm, device="cpu", **OPTIONS)
        host_lane = tokenferry.AllToAll(comm, **OPTIONS)
        with pytest.raises(tokenferry.ConfigError, match="must be on the CPU"):
            host_lane.dispatch_send(on[0], ids, weights)
        host_lane.close()

    ranks.in_threads(1, body)


def test_a_masked_rank_is_left_out():
    def body(comm):
        a2a = tokenferry.DeviceAllToAll(comm, layout="ragged", on_dead_rank="mask", **OPTIONS)
        assert a2a.masked == [] and a2a.lost_tokens == []
        if comm.rank == 1:
            return
        for rank in (0, SIZE, -1):
            with pytest.raises(tokenferry.ConfigError, match="another one than 0"):
                a2a.mask(rank)
        a2a.mask(1)
        x, ids, weights = tokens_of(0, M)
        ids[:] = [[0, 1], [2, 3], [-1, 2], [5, -1]]
        out = gpu.array(np.zeros((M, H), np.float32))
        a2a.moe_forward_from_topk(*on_device((x, ids, weights)), experts_of(0), out=out)
        a2a.synchronise()
        assert a2a.masked == [1] and a2a.lost_tokens == [1, 3]
        ids[ids >= E // SIZE] = -1
        np.testing.assert_array_equal(host(out), expected(x, ids, weights))

    ranks.in_threads(SIZE, body)


def test_a_number_of_tokens_that_cannot_be_is_told_at_synchronise():
    def body(comm):
        a2a = tokenferry.DeviceAllToAll(comm, **OPTIONS)
        given = on_device(tokens_of(comm.rank, 2))
        a2a.dispatch_send(*given, gpu.array(np.array([3], np.int32)))
        with pytest.raises(tokenferry.ConfigError, match="the device says 3 tokens; 0 to 2 are possible"):
            a2a.synchronise()

    ranks.in_threads(1, body)


def test_an_id_that_is_no_slot_is_told_at_synchronise():
    def body(comm):
        a2a = tokenferry.DeviceAllToAll(comm, **OPTIONS)
        x, ids, weights = tokens_of(comm.rank, M)
        ids[2, 1] = E
        a2a.dispatch_send(*on_device((x, ids, weights)))
        with pytest.raises(tokenferry.ConfigError, match=f"token 2: choice 1 is slot {E}, outside -1..{E - 1}"):
            a2a.synchronise()

    ranks.in_threads(1, body)
