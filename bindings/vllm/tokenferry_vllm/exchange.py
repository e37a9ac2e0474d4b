"""The ranks of an expert-parallel group, and the exchanges of their MoE layers. Knows nothing of vLLM; takes
torch's tensors and numpy's arrays, as tokenferry does."""

import os
import time

import numpy
import tokenferry

_TOKENS = 1024  # of a rank in one exchange; more go in turns, so that memory does not follow the longest prompt


def _setting(name, default, parse=str):
    text = os.environ.get(f"TOKENFERRY_VLLM_{name}")
    if text is None:
        return default
    try:
        return parse(text)
    except ValueError:
        raise tokenferry.ConfigError(f"TOKENFERRY_VLLM_{name} is '{text}', which is no number") from None


def linear_slots(num_experts, num_ranks):
    """The expert of each slot, -1 where there is none, as vLLM lays them out: the first ranks hold one more."""
    per_rank = -(-num_experts // num_ranks)
    slots = []
    for rank in range(num_ranks):
        held = local_experts(num_experts, num_ranks, rank)
        slots += [*held, *[-1] * (per_rank - len(held))]
    return slots


def local_experts(num_experts, num_ranks, rank):
    """The range of experts on a rank, in the order of its weights."""
    fewest, more = divmod(num_experts, num_ranks)
    begin = rank * fewest + min(rank, more)
    return range(begin, begin + fewest + (rank < more))


class Ranks:
    """The ranks that share the experts, and one exchange for each shape of layer.

    comm: a tokenferry.Comm of all of them.
    copies: ranks next to each other that hold the same tokens (tensor-parallel attention). Each sends
        its part of them.
    """

    def __init__(self, comm, copies=1):
        self.comm, self.copies = comm, copies
        self._exchanges = {}

    @classmethod
    def of_process_group(cls, group, copies=1):
        """Collective over a torch process group."""
        comm = tokenferry.from_process_group(
            group,
            transport=_setting("TRANSPORT", "auto"),
            join_timeout=_setting("JOIN_TIMEOUT", 600.0, float),  # ranks load weights at their own pace
        )
        return cls(comm, copies)

    def exchange(self, *, num_experts, topk, hidden, dtype, max_tokens):
        """The exchange of layers of this shape. Collective where the shape is new.

        dtype: of the rows, 'bfloat16', 'float16' or 'float32'. float16 travels as float32, which holds it.
        max_tokens: that a rank may have in one call, copies included.
        """
        shape = (num_experts, topk, hidden, dtype)
        if shape not in self._exchanges:
            wire = "bf16" if dtype == "bfloat16" else "f32"
            part = -(-max_tokens // self.copies)
            lane = tokenferry.AllToAll(
                self.comm, num_experts=num_experts, topk=topk, hidden=hidden,
                max_tokens=max(1, min(part, _setting("MAX_TOKENS", _TOKENS, int))),
                backend=_setting("BACKEND", "pplx"), layout="ragged", row_alignment=1, row_weights=True,
                on_dead_rank="fail",
                dispatch_dtype=wire, combine_dtype=wire, timeout=_setting("TIMEOUT", 300.0, float),
            )
            self._exchanges[shape] = Exchange(lane, self.comm, num_experts, self.copies)
        return self._exchanges[shape]

    def who_is_gone(self, seconds=1.0):
        """The TransportError that names a rank that has died or given up; None where none has within that time."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                self.comm.progress()
            except tokenferry.TransportError as error:
                return error
            if time.monotonic() >= deadline:
                return None
            time.sleep(0.02)  # its sockets are closed before its process has ended


class Exchange:
    """Tokens to the ranks that hold their experts, and weighted sums home; one call at a time."""

    def __init__(self, lane, comm, num_experts, copies):
        self._lane = lane
        self._copies, self._copy = copies, comm.rank % copies
        slots = linear_slots(num_experts, comm.size)
        self._placement = tokenferry.Placement(slots, num_experts, comm.size) if -1 in slots else None

    def forward(self, x, ids, weights, kernel, out):
        """A MoE layer: sums of the experts' rows for this rank's part of x, zeros for the other parts.

        x: [m, H]; ids [m, K] int32, -1 for none; weights [m, K] float32; out: [m, H] of x's type.
        kernel(rows, local_ids, weights, out): called at most once an exchange, with n >= 1 rows: [n, H] of
            x's type, [n] int32, [n] float32; writes expert(row) * weight to out [n, H].
        Collective: ranks without tokens take part.
        """
        tokens = len(x)
        begin, end = (tokens * copy // self._copies for copy in (self._copy, self._copy + 1))
        out[:begin] = 0
        out[end:] = 0
        part = slice(begin, end)
        self._lane.moe_forward_from_topk(
            x[part], ids[part], weights[part], lambda rows: _compute(rows, kernel, x), out=out[part],
            placement=self._placement,
        )


def _compute(rows, kernel, like):
    if rows.num_rows == 0:
        return
    x, out = rows.x, rows.out
    if x.dtype == like.dtype:
        kernel(x, rows.slots, rows.row_weights, out)
        return
    narrow, results = _empty(x.shape, like), _empty(x.shape, like)
    narrow[:] = x
    kernel(narrow, rows.slots, rows.row_weights, results)
    out[:] = results


def _empty(shape, like):
    return numpy.empty(shape, like.dtype) if isinstance(like, numpy.ndarray) else like.new_empty(shape)
