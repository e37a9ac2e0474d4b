"""The exchange in a device's memory: every phase is a kernel on a stream of yours."""

import sys

from . import _core
from .all_to_all import dtype_name
from .comm import close_at_exit
from .errors import ConfigError


def _number_of(device):
    """Of 0, 'cuda', 'cuda:1' or a torch.device."""
    if isinstance(device, int):
        return device
    kind, _, number = str(device).partition(":")
    if kind != "cuda" or not (number == "" or number.isdigit()):
        raise ConfigError(f"device is {device!r}; it must be a CUDA device's number, or 'cuda:N'")
    return int(number or 0)


def _handle_of(stream, device):
    """The CUstream of a number, a torch.cuda.Stream, or (None) torch's current one; else the default stream."""
    torch = sys.modules.get("torch")
    if stream is None and torch is not None and torch.cuda.is_available():
        stream = torch.cuda.current_stream(device)
    if stream is None:
        return 0
    return getattr(stream, "cuda_stream", stream)


class DeviceAllToAll(_core.DeviceAllToAll):
    """An all-to-all whose tokens, rows and results lie on a GPU: the four phases of AllToAll, each a kernel
    on a stream. A phase returns once its kernel is there; nothing between them waits for the host, which
    knows no numbers of rows. So the phases can be captured in a graph. **Compiled and emulated, not run on
    a GPU** (docs/gpu.md).

    Construction is collective: all ranks make it with the same options, and make the same calls in the same
    order. Ranks are threads of one process on one device, or processes with a device each, on one host or,
    over fabric, on several.

    comm: the ranks. num_experts, topk, hidden, max_tokens, backend, deepep_mode, layout, redundant, tp,
        row_weights, row_alignment, dispatch_dtype, expert_dtype, combine_dtype, timeout: as of AllToAll; no
        'ascend_fuseep'. Ids are those of slots, int32; expert e is in slot e.
    on_dead_rank: 'fail' or 'mask'; default: the backend's. With 'mask' who does not come within the timeout is
        left out from then on (masked, lost_tokens).
    device: its number, 'cuda:N' or a torch.device.
    stream: a torch.cuda.Stream or a CUstream's number, which outlives this; default: torch's current one on
        that device. Arrays must be valid for work on it.
    """

    def __init__(
        self, comm, *, num_experts, topk, hidden, max_tokens, device=0, stream=None, backend="pplx",
        deepep_mode="low_latency", layout=None, redundant=0, dispatch_dtype="bf16", expert_dtype=None,
        combine_dtype="bf16", tp=1, row_weights=False, row_alignment=16, on_dead_rank=None, timeout=30.0,
    ):
        number = _number_of(device)
        super().__init__(
            comm,
            dict(
                num_experts=num_experts, topk=topk, hidden=hidden, max_tokens=max_tokens, device=number,
                stream=_handle_of(stream, number), backend=backend, deepep_mode=deepep_mode, layout=layout,
                redundant=redundant,
                dispatch_dtype=dtype_name(dispatch_dtype),
                expert_dtype=None if expert_dtype is None else dtype_name(expert_dtype),
                combine_dtype=dtype_name(combine_dtype), tp=tp, row_weights=row_weights,
                row_alignment=row_alignment, on_dead_rank=on_dead_rank, timeout=timeout,
            ),
        )
        close_at_exit(self)

    def moe_forward_from_topk(self, x, topk_ids, topk_weights, experts, *, out, num_tokens=None, accumulate=False):
        """The four phases around `experts`, which is called with ExpertRows and puts its work on the stream.
        Returns `out`; nothing has been waited for."""
        self.dispatch_send(x, topk_ids, topk_weights, num_tokens)
        experts(self.dispatch_recv())
        self.combine_send()
        return self.combine_recv(out, accumulate)
