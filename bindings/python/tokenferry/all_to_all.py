"""Tokens to the ranks that hold their experts, and results home as weighted sums."""

import numpy

from . import _core
from .comm import close_at_exit

_DTYPES = {
    "float32": "f32", "bfloat16": "bf16", "float8_e4m3fn": "fp8", "int8": "int8",
    "f32": "f32", "bf16": "bf16", "fp8": "fp8", "fp8_pow2": "fp8_pow2", "int8_block": "int8_block",
}


def dtype_name(dtype):
    """The wire's name ('f32', 'bf16', 'fp8', ...) of a torch or numpy dtype, or of a name."""
    if isinstance(dtype, type):  # numpy.float32, ml_dtypes.bfloat16
        dtype = numpy.dtype(dtype)
    name = str(getattr(dtype, "name", dtype)).removeprefix("torch.")
    return _DTYPES.get(name, name)


class AllToAll(_core.Lane):
    """An all-to-all over the ranks of a Comm: the four phases, or moe_forward around your experts.

    Construction is collective: all ranks make it with the same options, and make the same calls in
    the same order. One call at a time.

    comm: the ranks.
    num_experts, topk: E and K. Expert e is in slot e, and slot p on rank p // slots_per_rank, unless a
        call names another Placement.
    hidden: H, columns of a token's row.
    max_tokens: of a rank in one exchange. Memory is sized for it; moe_forward takes more in turns.
    backend: 'pplx', 'deepep', 'mooncake', 'alltoallv', 'none', 'ascend_fuseep' or 'auto'
        (docs/all_to_all.md); deepep_mode: 'low_latency', 'normal' or 'auto'.
    layout: of the rows that experts get, 'padded' or 'ragged'; default: the backend's.
    redundant: slots beyond one an expert, for replicas.
    dispatch_dtype, combine_dtype: what travels out and back: 'f32', 'bf16', 'fp8' (e4m3 with a
        float32 scale per 128), 'fp8_pow2', 'int8', 'int8_block', or a torch or numpy dtype.
    expert_dtype: what experts read; default: dispatch_dtype as it travelled.
    tp: ranks that call with the same tokens (tensor-parallel attention).
    row_weights: weights go to the experts with the rows (ExpertRows.row_weights), and results are
        added up as they are.
    row_alignment: ragged: rows that a slot's first one is aligned to; 1 leaves no gaps.
    on_dead_rank: 'fail' or 'mask'; default: the backend's.
    hidden_partition: ranks hold the same tokens and pass H / R columns each.
    timeout: seconds that a phase waits for the others.
    scoring ('softmax' or 'sigmoid'), renormalize, choose_first, num_groups, topk_groups, group_score
        ('max' or 'sum_of_two'), scaling: how moe_forward routes (ferry/router.h).
    """

    def __init__(
        self, comm, *, num_experts, topk, hidden, max_tokens, backend="pplx",
        deepep_mode="low_latency", layout=None, redundant=0, dispatch_dtype="bf16",
        expert_dtype=None, combine_dtype="bf16", tp=1, row_weights=False, row_alignment=16,
        on_dead_rank=None, hidden_partition=None, timeout=30.0, **routing,
    ):
        super().__init__(
            comm,
            dict(
                num_experts=num_experts, topk=topk, hidden=hidden, max_tokens=max_tokens,
                backend=backend, deepep_mode=deepep_mode, layout=layout, redundant=redundant,
                dispatch_dtype=dtype_name(dispatch_dtype),
                expert_dtype=None if expert_dtype is None else dtype_name(expert_dtype),
                combine_dtype=dtype_name(combine_dtype), tp=tp, row_weights=row_weights,
                row_alignment=row_alignment, on_dead_rank=on_dead_rank,
                hidden_partition=hidden_partition, timeout=timeout, **routing,
            ),
        )
        close_at_exit(self)

    def dispatch(self, x, topk_ids, topk_weights=None, *, return_hook=False, **options):
        """dispatch_send and dispatch_recv. With return_hook the second runs when the hook is called."""
        self.dispatch_send(x, topk_ids, topk_weights, **options)
        return self.dispatch_recv if return_hook else self.dispatch_recv()

    def combine(self, out=None, *, accumulate=False, return_hook=False):
        """combine_send and combine_recv. With return_hook the second runs when the hook is called."""
        self.combine_send()
        if return_hook:
            return lambda: self.combine_recv(out, accumulate)
        return self.combine_recv(out, accumulate)


def moe_forward(a2a, x, router_logits, experts, **options):
    """A MoE layer around your experts, from router logits: AllToAll.moe_forward."""
    return a2a.moe_forward(x, router_logits, experts, **options)


def moe_forward_from_topk(a2a, x, topk_ids, topk_weights, experts, **options):
    """The same with the routing done: AllToAll.moe_forward_from_topk."""
    return a2a.moe_forward_from_topk(x, topk_ids, topk_weights, experts, **options)


class Experts(_core.NativeExperts):
    """Our experts on your weights: the grouped gated block, down(silu(gate(x)) * up(x)).

    w13: [L, 2 * I, H] float32 or bfloat16: gate rows, then up rows, of each of this rank's slots.
    w2: [L, H, I] of the same type. Both are packed into memory of ours and may be freed afterwards.
    weights: 'f32', 'bf16', 'int8', 'fp8', 'int4' or 'mxfp4'; default: as they are.
    activation: 'silu', or 'clamped' with alpha and limit (gpt-oss).
    b13 [L, 2 * I], b2 [L, H]: float32 biases, both or none.
    comm: whose threads compute; without one, `threads` of its own.
    max_rows: rows that are computed in one turn. row_weights: rows come with weights.
    """

    def __init__(self, w13, w2, **options):
        super().__init__(w13, w2, options)
