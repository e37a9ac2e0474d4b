"""mooncake.mooncake_ep_buffer.Buffer: DeepEP's low-latency calls with a list of active ranks."""

import numpy

from .. import _frames as frames
from ..deep_ep.buffer import Buffer as DeepEpBuffer
from ..deep_ep.utils.event import EventOverlap


class Buffer:
    """The ranks of `group`: a torch process group, or a tokenferry.Comm. Collective."""

    def __init__(self, group, num_ep_buffer_bytes=0, disable_p2p=False):
        self.group, self.num_ep_buffer_bytes = group, num_ep_buffer_bytes
        self._use_fallback = False  # which callers set and ask for; there is one way here
        self.connect()
        self.rank, self.group_size = self._buffer.rank, self._buffer.group_size

    @staticmethod
    def get_ep_buffer_size_hint(num_max_dispatch_tokens_per_rank, hidden, num_ranks, num_experts):
        return DeepEpBuffer.get_low_latency_rdma_size_hint(
            num_max_dispatch_tokens_per_rank, hidden, num_ranks, num_experts)

    def connect(self, is_update=False):
        """The ranks meet, all of them; also those that others had left out. Handles of before are void."""
        self._buffer = DeepEpBuffer(self.group, low_latency_mode=True, enable_shrink=True)

    def update_ep_member(self):
        """Some ranks call this while others make a Buffer."""
        self.connect(True)

    def _active(self, active_ranks):
        """Of this rank's group, or None: callers may leave it out, and a list of another length means all of them."""
        view = None if active_ranks is None else frames.to_numpy(active_ranks)
        return view if view is not None and view.size == self.group_size else None

    def _before(self, active_ranks, timeout_us):
        exchange = self._buffer._exchange
        exchange.timeout = 1e9 if timeout_us < 0 else timeout_us * 1e-6
        active = self._active(active_ranks)
        for rank in range(self.group_size if active is not None else 0):
            if not active[rank] and not exchange.masked[rank]:
                exchange.mask(rank)

    def _after(self, active_ranks):
        active = self._active(active_ranks)
        if active is not None:
            active[...] = 1 - numpy.asarray(self._buffer._exchange.masked, numpy.int32)

    def _hooked(self, hook, active_ranks, return_recv_hook):
        if not return_recv_hook:
            self._after(active_ranks)
            return lambda: None

        def run():
            hook()
            self._after(active_ranks)

        return run

    def dispatch(self, x, topk_idx, active_ranks, num_max_dispatch_tokens_per_rank, num_experts, timeout_us,
                 use_fp8=None, async_finish=False, return_recv_hook=False):
        """As low_latency_dispatch, with fp8 unless use_fp8 is False. active_ranks int32 [R]: ranks with 0 are left
        out, and one that dies, or is later than timeout_us (-1: any), gets 0; None, and any other length: all."""
        self._before(active_ranks, timeout_us)
        recv, count, handle, _, hook = self._buffer.low_latency_dispatch(
            x, topk_idx, num_max_dispatch_tokens_per_rank, num_experts, use_fp8=use_fp8 is not False,
            return_recv_hook=return_recv_hook)
        return recv, count, handle, EventOverlap(), self._hooked(hook, active_ranks, return_recv_hook)

    def combine(self, x, topk_idx, topk_weights, active_ranks, timeout_us, handle, zero_copy=False,
                async_finish=False, return_recv_hook=False, out=None):
        """As low_latency_combine; what experts of ranks that are gone would have added is missing."""
        self._before(active_ranks, timeout_us)
        combined, _, hook = self._buffer.low_latency_combine(
            x, topk_idx, topk_weights, handle, zero_copy=zero_copy, return_recv_hook=return_recv_hook, out=out)
        return combined, EventOverlap(), self._hooked(hook, active_ranks, return_recv_hook)

    def get_next_combine_buffer(self, handle):
        return self._buffer.get_next_low_latency_combine_buffer(handle)
