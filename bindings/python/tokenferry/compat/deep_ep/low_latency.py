"""The low-latency half of deep_ep.Buffer: a row for each (token, expert), results weighted at home."""

import numpy

from .. import _frames as frames
from ... import _core
from ...errors import ConfigError
from .utils.event import EventHandle, EventOverlap

_NAMES = {True: "float8_e4m3fn", False: "bfloat16"}


class LowLatency:
    """Mixed into Buffer, which sends and receives."""

    @staticmethod
    def get_low_latency_rdma_size_hint(num_max_dispatch_tokens_per_rank, hidden, num_ranks, num_experts):
        """Bytes; an upper bound of what the rows of one dispatch take, for who prints or compares it."""
        return 2 * num_experts * num_max_dispatch_tokens_per_rank * (2 * hidden + 16)

    def low_latency_dispatch(self, x, topk_idx, num_max_dispatch_tokens_per_rank, num_experts,
                             cumulative_local_expert_recv_stats=None, dispatch_wait_recv_cost_stats=None,
                             use_fp8=True, round_scale=False, use_ue8m0=False, async_finish=False,
                             return_recv_hook=False):
        """x bfloat16 [T, H], topk_idx [T, K] (-1: none). Returns what DeepEP returns: rows [L, M * R, H] of
        bfloat16, or (float8_e4m3fn, scales) with scales column-major; counts int32 [L]; the handle; an event;
        and the hook that receives, where asked for. Scales are greatest magnitude / 448 of 128 values."""
        self._check_experts(num_experts)
        torch_too = frames.is_torch(x)
        rows, ids = frames.to_numpy(x), frames.to_numpy(topk_idx)
        most, hidden = num_max_dispatch_tokens_per_rank, rows.shape[1]
        if rows.shape[0] > most:
            raise ConfigError(f"{rows.shape[0]} tokens, num_max_dispatch_tokens_per_rank is {most}")
        if use_ue8m0 and not (round_scale and use_fp8):
            raise ConfigError("use_ue8m0 goes with use_fp8 and round_scale")
        scales = None
        if use_fp8:
            if hidden % 128 or (use_ue8m0 and hidden % 512):
                raise ConfigError(f"hidden is {hidden}; fp8 rows are multiples of {512 if use_ue8m0 else 128}")
            rows, scales = _core.quantize(numpy.ascontiguousarray(rows), "fp8_pow2" if round_scale else "fp8")
            if round_scale and not use_ue8m0:
                scales = (scales.astype(numpy.uint32) << 23).view(numpy.float32)
        local = num_experts // self.group_size
        out = _Received(self, local, most, hidden, rows.dtype, scales, torch_too)
        messages = [self._rows_for(rank, ids, local, rows, scales) for rank in range(self.group_size)]

        def received(got):
            out.take(got)
            if cumulative_local_expert_recv_stats is not None:
                frames.to_numpy(cumulative_local_expert_recv_stats)[...] += out.counts
            self._add_waits(dispatch_wait_recv_cost_stats)

        self._send(messages, received)
        if not return_recv_hook:
            self._finish()
        give = lambda array: frames.from_numpy(array, array.dtype.name, torch_too)  # noqa: E731
        recv = frames.from_numpy(out.rows, _NAMES[use_fp8], torch_too)
        if use_fp8:
            factors = out.scales.view(numpy.int32) if use_ue8m0 else out.scales
            recv = (recv, give(factors.transpose(0, 2, 1)))
        handle = (give(out.source), give(out.layout), most, hidden, num_experts)
        hook = self._hook(received) if return_recv_hook else None
        return recv, give(out.counts), handle, EventOverlap(EventHandle()), hook

    def _rows_for(self, rank, ids, local, rows, scales):
        """Of each of the rank's experts: how many tokens, which, and their rows."""
        counts, tokens = numpy.zeros(local, numpy.int64), []
        for expert in range(local):
            chosen = numpy.flatnonzero((ids == rank * local + expert).any(axis=1)).astype(numpy.int32)
            counts[expert] = len(chosen)
            tokens.append(chosen)
        chosen = numpy.concatenate(tokens) if tokens else numpy.empty(0, numpy.int32)
        message = frames.Packer().add(counts).add(chosen).add(rows[chosen])
        return (message if scales is None else message.add(scales[chosen])).bytes()

    def _hook(self, received):
        def hook():
            if self._pending is received:
                self._finish()

        return hook

    def _add_waits(self, stats):
        """Microseconds by source rank, in the row of this rank where there is one for each."""
        if stats is not None:
            view = frames.to_numpy(stats)
            row = view[self.rank] if view.ndim == 2 else view
            row += numpy.asarray(self._exchange.waited_us, view.dtype)

    def low_latency_combine(self, x, topk_idx, topk_weights, handle, use_logfmt=False, zero_copy=False,
                            async_finish=False, return_recv_hook=False, out=None,
                            combine_wait_recv_cost_stats=None):
        """x bfloat16 [L, M * R, H] as dispatch laid it out. Home adds up weights * rows in the order of the
        token's choices, in float32. Returns (bfloat16 [T, H], event, hook). use_logfmt compresses nothing here."""
        source, layout, most, hidden, num_experts = handle
        torch_too, name = frames.is_torch(x), frames.dtype_name(x)
        if zero_copy and id(source) not in self._zero_copy:
            raise ConfigError("zero_copy needs get_next_low_latency_combine_buffer() of the same handle before")
        rows = frames.to_numpy(self._zero_copy.pop(id(source)) if zero_copy else x)
        ids, weights = frames.to_numpy(topk_idx), frames.to_numpy(topk_weights)
        layout = frames.to_numpy(layout)
        local = num_experts // self.group_size
        messages = []
        for rank in range(self.group_size):
            parts = [rows[e, layout[e, rank] >> 32 :][: layout[e, rank] & 0xFFFFFFFF] for e in range(local)]
            messages.append(frames.Packer().add(numpy.concatenate(parts)).bytes())
        result = frames.from_numpy(numpy.zeros((ids.shape[0], hidden), rows.dtype), name, torch_too)
        result = result if out is None else out

        def received(got):
            frames.copy_into(result, frames.from_f32(self._weighted(got, ids, weights, local, rows, name), name))
            self._add_waits(combine_wait_recv_cost_stats)

        self._send(messages, received)
        if not return_recv_hook:
            self._finish()
        return result, EventOverlap(EventHandle()), self._hook(received) if return_recv_hook else None

    def _weighted(self, got, ids, weights, local, rows, name):
        """Result rows lie by expert, then token, as they were sent; choices are added in their order."""
        place = numpy.full(ids.shape, -1, numpy.int64)
        arrived, first = [], 0
        for rank, message in enumerate(got):
            sent = [numpy.flatnonzero((ids == rank * local + e).any(axis=1)) for e in range(local)]
            count = sum(len(tokens) for tokens in sent)
            if message is None:
                continue  # masked: its experts' parts are missing
            arrived.append(frames.Unpacker(message).take(rows.dtype, (count, rows.shape[-1])))
            for expert, tokens in enumerate(sent):
                at = numpy.full(ids.shape[0], -1, numpy.int64)
                at[tokens] = first + numpy.arange(len(tokens))
                place = numpy.where(ids == rank * local + expert, at[:, None], place)
                first += len(tokens)
        values = frames.to_f32(numpy.concatenate(arrived), name)
        sums = numpy.zeros((ids.shape[0], rows.shape[-1]), numpy.float32)
        for k in range(ids.shape[1]):
            have = place[:, k] >= 0
            sums[have] += weights[have, k, None].astype(numpy.float32) * values[place[have, k]]
        return sums

    def get_next_low_latency_combine_buffer(self, handle):
        """bfloat16 [L, R * M, H] for the rows of the next combine with zero_copy and this handle."""
        source, _, most, hidden, num_experts = handle
        shape = (num_experts // self.group_size, most * self.group_size, hidden)
        space = frames.from_numpy(numpy.zeros(shape, numpy.uint16), "bfloat16", frames.is_torch(source))
        self._zero_copy[id(source)] = space
        return space

    # --- Masks --------------------------------------------------------------------------------

    def clean_low_latency_buffer(self, num_max_dispatch_tokens_per_rank, hidden, num_experts):
        """Meets all ranks, as theirs does. Nothing is left in a buffer of ours that a next call could find."""
        self._send([numpy.empty(0, numpy.uint8)] * self.group_size, lambda got: None)
        self._finish()

    def low_latency_update_mask_buffer(self, rank_to_mask, mask=False):
        """A masked rank stays masked: its place in the exchange cannot be had again."""
        if not mask:
            if self._exchange.masked[rank_to_mask]:
                raise ConfigError(f"rank {rank_to_mask} is masked for good; make a new Buffer")
            return
        self._exchange.mask(rank_to_mask)

    def low_latency_query_mask_buffer(self, mask_status):
        frames.to_numpy(mask_status)[...] = numpy.asarray(self._exchange.masked, numpy.int32)

    def low_latency_clean_mask_buffer(self):
        if any(self._exchange.masked):
            raise ConfigError("masked ranks stay masked; make a new Buffer")


class _Received:
    """What a dispatch hands out at once and its hook fills."""

    def __init__(self, buffer, local, most, hidden, dtype, scales, torch_too):
        size = buffer.group_size
        self.counts = numpy.zeros(local, numpy.int32)
        self.source = numpy.zeros((local, most * size), numpy.int32)
        self.layout = numpy.zeros((local, size), numpy.int64)
        self.rows = numpy.zeros((local, most * size, hidden), dtype)
        self.scales = None
        if scales is not None and scales.dtype == numpy.uint8:  # four exponents to an int32, column-major
            self.scales = numpy.zeros((local, scales.shape[1] // 4, most * size, 4), numpy.uint8)
            self.scales = self.scales.reshape(local, scales.shape[1] // 4, most * size * 4)
        elif scales is not None:
            self.scales = numpy.zeros((local, scales.shape[1], most * size), scales.dtype)

    def take(self, got):
        local, hidden = self.counts.shape[0], self.rows.shape[2]
        for rank, message in enumerate(got):
            if message is None:
                continue
            body = frames.Unpacker(message)
            counts = body.take(numpy.int64, (local,))
            total = int(counts.sum())
            tokens = body.take(numpy.int32, (total,))
            rows = body.take(self.rows.dtype, (total, hidden))
            scales = None
            if self.scales is not None:
                groups = hidden // 128
                scales = body.take(self.scales.dtype, (total, groups))
            first = 0
            for expert, count in enumerate(int(n) for n in counts):
                begin = int(self.counts[expert])
                self.layout[expert, rank] = (begin << 32) | count
                here, there = slice(begin, begin + count), slice(first, first + count)
                self.source[expert, here] = tokens[there]
                self.rows[expert, here] = rows[there]
                if scales is not None:
                    self._take_scales(expert, begin, count, scales[there])
                self.counts[expert] += count
                first += count

    def _take_scales(self, expert, begin, count, scales):
        if scales.dtype == numpy.uint8:
            packed = scales.reshape(count, scales.shape[1] // 4, 4)
            space = self.scales[expert].reshape(packed.shape[1], -1, 4)
            space[:, begin : begin + count] = packed.transpose(1, 0, 2)
        else:
            self.scales[expert][:, begin : begin + count] = scales.T
