"""Our experts on a caller's weights, against the formula."""

import numpy as np
import pytest
import ranks
import tokenferry

L, H, INTER = 3, 96, 80


def weights(slots=L, seed=0):
    rng = np.random.default_rng(seed)
    w13 = (rng.standard_normal((slots, 2 * INTER, H)) / 10).astype(np.float32)
    w2 = (rng.standard_normal((slots, H, INTER)) / 10).astype(np.float32)
    return w13, w2


def formula(x, w13, w2, b13=0, b2=0, clamped=False):
    both = x @ w13.T + b13
    gate, up = both[:, :INTER], both[:, INTER:]
    if clamped:
        gate, up = np.minimum(gate, 7.0), np.clip(up, -7.0, 7.0)
        return (gate / (1 + np.exp(-1.702 * gate)) * (up + 1)) @ w2.T + b2
    return (gate / (1 + np.exp(-gate)) * up) @ w2.T + b2


def expected(x, counts, w13, w2, **options):
    parts = np.split(x, np.cumsum(counts)[:-1])
    return np.concatenate([formula(p, w13[l], w2[l], **options) for l, p in enumerate(parts)])


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kind, tolerance", [("f32", 1e-5), ("bf16", 0.02), ("int8", 0.05), ("fp8", 0.08), ("int4", 0.3),
                                             ("mxfp4", 0.3)])
def test_every_weight_type(kind, tolerance, threads):
    w13, w2 = weights()
    experts = tokenferry.Experts(w13, w2, weights=kind, threads=threads, max_rows=7)
    assert (experts.num_slots, experts.hidden, experts.intermediate) == (L, H, INTER)
    assert experts.dtype == ("f32" if kind == "f32" else "bf16")
    counts = np.array([5, 0, 12], np.int32)
    x = np.random.default_rng(1).standard_normal((17, H)).astype(np.float32)
    want = expected(x, counts, w13, w2)
    out = np.empty((17, H), np.float32)
    given = x
    if kind != "f32":
        import ml_dtypes

        given = x.astype(ml_dtypes.bfloat16)
    assert experts.apply(given, counts, out) is out
    assert np.abs(out - want).max() / np.abs(want).max() < tolerance


def test_biases_and_clamped_activation():
    w13, w2 = weights()
    rng = np.random.default_rng(2)
    b13, b2 = rng.standard_normal((L, 2 * INTER)).astype(np.float32), rng.standard_normal((L, H)).astype(np.float32)
    experts = tokenferry.Experts(w13, w2, b13=b13, b2=b2, activation="clamped", alpha=1.702, limit=7.0)
    x = rng.standard_normal((4, H)).astype(np.float32)
    for slot in range(L):
        counts = np.zeros(L, np.int32)
        counts[slot] = 4
        want = formula(x, w13[slot], w2[slot], b13[slot], b2[slot], clamped=True)
        np.testing.assert_allclose(experts.apply(x, counts), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", ["padded", "ragged", "row_pointers"])
def test_in_an_exchange_as_a_callback_and_natively(layout):
    def body(comm):
        all13, all2 = weights(2 * L)
        own = slice(comm.rank * L, (comm.rank + 1) * L)
        experts = tokenferry.Experts(all13[own], all2[own], comm=comm)
        a2a = tokenferry.AllToAll(comm, num_experts=2 * L, topk=2, hidden=H, max_tokens=8, layout=layout,
                                  dispatch_dtype="f32", combine_dtype="f32")
        rng = np.random.default_rng(comm.rank)
        x = rng.standard_normal((5, H)).astype(np.float32)
        ids = np.stack([rng.permutation(2 * L)[:2] for _ in range(5)])
        w = rng.random((5, 2), np.float32)
        want = np.stack([sum(w[t, k] * formula(x[t : t + 1], all13[e], all2[e])[0] for k, e in enumerate(ids[t]))
                         for t in range(5)])
        native = tokenferry.moe_forward_from_topk(a2a, x, ids, w, experts)
        np.testing.assert_allclose(native, want, rtol=1e-4, atol=1e-4)
        called = a2a.moe_forward_from_topk(x, ids, w, lambda rows: experts(rows))
        np.testing.assert_array_equal(called, native)

    ranks.in_threads(2, body)


@pytest.mark.parametrize(
    "change, text",
    [(lambda a, b: (a[:, :-1], b), "w13"), (lambda a, b: (a, b[:, :, :-1].copy()), "w13"), (lambda a, b: (a.astype(np.float64), b), "float64"),
     (lambda a, b: (a.transpose(0, 2, 1), b), "side by side")],
)
def test_what_cannot_be_is_refused(change, text):
    with pytest.raises(tokenferry.ConfigError, match=text):
        tokenferry.Experts(*change(*weights()))
    experts = tokenferry.Experts(*weights())
    x = np.zeros((3, H), np.float32)
    with pytest.raises(tokenferry.ConfigError, match="4 rows"):
        experts.apply(x, np.array([4, 0, 0], np.int32))
    with pytest.raises(tokenferry.ConfigError, match="-1"):
        experts.apply(x, np.array([4, -1, 0], np.int32))
    with pytest.raises(tokenferry.ConfigError, match="activation"):
        tokenferry.Experts(*weights(), activation="relu")
