"""deep_ep.ElasticBuffer (DeepEP V2): one dispatch and combine for all batch sizes, on CPU tensors.

Rows come in order of source rank, then token, always: what DeepEP calls deterministic. As in V1 a handle
may be used any number of times, so messages are exchanges of their own.
"""

import functools

import numpy

from .. import _frames as frames
from ... import _core
from ...errors import ConfigError
from .domains import logical_domain, physical_domain
from .elastic_extras import ElasticExtras
from .utils.event import EventHandle, EventOverlap
from .utils.math import align


class EPHandle:
    """What dispatch() hands to combine() and to a cached dispatch(); DeepEP's members, each where callers read it.

    recv_src_metadata [rows, 2 + K] int32: the token's number among all ranks' (source rank *
    num_max_tokens_per_rank + token), its place among what its source sent here, and in expanding mode the row of each
    choice, -1 where it is not computed here.
    """

    def __init__(self, **members):
        self.__dict__.update(members)


def _event():
    return EventOverlap(EventHandle())


def _selected(ids, local, rank):
    """[T, K] whether a choice is computed on `rank`."""
    return (ids >= 0) & (ids // local == rank)


class ElasticBuffer(ElasticExtras):
    """The ranks of `group`, a torch process group or a tokenferry.Comm. Collective. Sizes, queue pairs, service
    levels and timeouts of devices have no meaning here; num_cpu_timeout_secs is how long a peer is waited for."""

    def __init__(self, group, num_bytes=None, num_cpu_bytes=0, num_max_tokens_per_rank=0, hidden=0, num_topk=0,
                 use_fp8_dispatch=False, deterministic=False, allow_hybrid_mode=True, allow_multiple_reduction=True,
                 prefer_overlap_with_compute=True, sl_idx=3, num_allocated_qps=0, num_cpu_timeout_secs=300,
                 num_gpu_timeout_secs=100, explicitly_destroy=False):
        self.group = group
        self.comm = frames.comm_of(group)
        self.rank_idx, self.num_ranks = self.comm.rank, self.comm.size
        self.allow_hybrid_mode = allow_hybrid_mode
        self.allow_multiple_reduction = allow_multiple_reduction
        self.prefer_overlap_with_compute = prefer_overlap_with_compute
        self.deterministic = deterministic
        self.num_max_tokens_per_rank = num_max_tokens_per_rank
        self.num_bytes = 0 if num_bytes is None else num_bytes
        self.num_allocated_qps = num_allocated_qps or 17
        self.explicitly_destroy = explicitly_destroy
        self.num_scaleout_ranks, self.num_scaleup_ranks = self.get_logical_domain_size()
        self.scaleout_rank_idx, self.scaleup_rank_idx = divmod(self.rank_idx, self.num_scaleup_ranks)
        self.num_rdma_ranks, self.num_nvlink_ranks = self.get_physical_domain_size()
        self._exchange = _core.ByteExchange(self.comm, dict(timeout=float(num_cpu_timeout_secs)))

    def destroy(self):
        self._exchange = None

    # --- What there is no such thing of -------------------------------------------------------

    @staticmethod
    def capture():
        return EventHandle()

    def get_comm_stream(self):
        return None

    def get_theoretical_num_sms(self, num_experts, num_topk, num_scaleout_topk=0, rdma_gbs=0, nvlink_gbs=0,
                                sm_read_gbs=200, sm_write_gbs=50):
        return 4  # the least that DeepEP says

    def get_theoretical_num_qps(self, num_sms):
        return min(num_sms, self.num_allocated_qps)

    # --- Ranks ----------------------------------------------------------------------------------

    def get_physical_domain_size(self):
        """(hosts, ranks of each)"""
        return physical_domain(self.comm)

    def get_logical_domain_size(self):
        """(scaleout ranks, scaleup ranks): the hosts and ranks of each with allow_hybrid_mode, else one domain."""
        return logical_domain(self.comm, self.allow_hybrid_mode)

    def barrier(self, use_comm_stream=True, with_cpu_sync=False, sequential=True):
        self.comm.barrier()

    def _swap(self, messages):
        """A message to each rank; those of all."""
        self._exchange.send(messages)
        return [frames.Unpacker(message) for message in self._exchange.recv()]

    # --- Dispatch -------------------------------------------------------------------------------

    def dispatch(self, x, topk_idx=None, topk_weights=None, cumulative_local_expert_recv_stats=None, num_experts=None,
                 num_max_tokens_per_rank=None, expert_alignment=None, num_sms=0, num_qps=0, previous_event=None,
                 previous_event_before_epilogue=None, async_with_compute_stream=False, allocate_on_comm_stream=False,
                 handle=None, do_handle_copy=True, do_cpu_sync=None, do_expand=False, do_zero_padding=False,
                 use_tma_aligned_col_major_sf=False):
        """Each token once to every rank that holds one of its experts. With do_expand a row for each choice instead,
        grouped by expert, each expert's first at a multiple of expert_alignment; rows between are 0.

        Without do_cpu_sync tensors have their worst size, and rows beyond what came are 0 (ids -1). Arguments,
        shapes and returns are DeepEP's.
        """
        if handle is not None:
            if topk_idx is not None or do_cpu_sync:
                raise ConfigError("a dispatch with a handle takes no topk_idx, and no do_cpu_sync")
            if do_expand != handle.do_expand:
                raise ConfigError("a dispatch with a handle expands as the one that made it")
        elif topk_idx is None:
            raise ConfigError("dispatch needs topk_idx or a handle")
        sizes = self._sizes(handle, num_experts, num_max_tokens_per_rank, expert_alignment)
        experts, most, alignment = sizes
        values, scales = x if isinstance(x, tuple) else (x, None)
        torch_too = frames.is_torch(values)
        ids = frames.to_numpy(topk_idx if handle is None else handle.topk_idx)
        if ids.shape[0] > most:
            raise ConfigError(f"{ids.shape[0]} tokens; num_max_tokens_per_rank is {most}")
        local = experts // self.num_ranks
        got = self._rows(values, scales, ids, topk_weights, local, most)
        counts = numpy.bincount(got["ids"][got["ids"] >= 0], minlength=local).astype(numpy.int32)
        if cumulative_local_expert_recv_stats is not None:
            frames.to_numpy(cumulative_local_expert_recv_stats)[...] += counts
        if handle is None:
            handle = self._handle(got, counts, topk_idx, ids, sizes, torch_too,
                                  dict(do_handle_copy=do_handle_copy, do_expand=do_expand, num_sms=num_sms or 4,
                                       worst=do_cpu_sync is False))
        result = self._give(got, handle, values, scales, torch_too, use_tma_aligned_col_major_sf)
        return (*result, handle, _event())

    def _sizes(self, handle, experts, most, alignment):
        if handle is not None:
            made = (handle.num_experts, handle.num_max_tokens_per_rank, handle.expert_alignment)
            if any(given not in (None, kept) for given, kept in zip((experts, most, alignment), made)):
                raise ConfigError("a dispatch with a handle has its number of experts, tokens and alignment")
            return made
        if experts is None or experts % self.num_ranks:
            raise ConfigError(f"{experts} experts do not divide by {self.num_ranks} ranks")
        return experts, self.num_max_tokens_per_rank if most is None else most, 1 if alignment is None else alignment

    def _rows(self, values, scales, ids, topk_weights, local, most):
        """What comes, in order of source rank, then token: rows, scales, local ids, weights, numbers."""
        rows = frames.to_numpy(values)
        factors = None if scales is None else numpy.ascontiguousarray(frames.to_numpy(scales))
        weights = None if topk_weights is None else frames.to_numpy(topk_weights)
        messages = []
        for rank in range(self.num_ranks):
            mine = _selected(ids, local, rank)
            chosen = numpy.flatnonzero(mine.any(axis=1)).astype(numpy.int32)
            message = frames.Packer().add(numpy.array([len(chosen)], numpy.int64)).add(chosen).add(rows[chosen])
            message.add(numpy.where(mine, ids - rank * local, -1)[chosen].astype(numpy.int64))
            if factors is not None:
                message.add(factors[chosen])
            if weights is not None:
                message.add(weights[chosen].astype(numpy.float32))
            messages.append(message.bytes())
        parts = {"rows": [], "ids": [], "scales": [], "weights": [], "number": []}
        counts = numpy.zeros(self.num_ranks, numpy.int64)
        for source, body in enumerate(self._swap(messages)):
            count = counts[source] = int(body.take(numpy.int64, (1,))[0])
            parts["number"].append(source * most + body.take(numpy.int32, (count,)))
            parts["rows"].append(body.take(rows.dtype, (count, rows.shape[1])))
            parts["ids"].append(body.take(numpy.int64, (count, ids.shape[1])))
            if factors is not None:
                parts["scales"].append(body.take(factors.dtype, (count, factors.shape[1])))
            if weights is not None:
                parts["weights"].append(body.take(numpy.float32, (count, ids.shape[1])))
        got = {name: numpy.concatenate(arrays) for name, arrays in parts.items() if arrays}
        return got | {"counts": counts}

    def _handle(self, got, counts, topk_idx, ids, sizes, torch_too, options):
        experts, most, alignment = sizes
        local, topk = len(counts), ids.shape[1]
        aligned = -(-counts // alignment) * alignment
        begin = numpy.cumsum(aligned) - aligned
        count = len(got["number"])
        metadata = numpy.full((count, 2 + topk), -1, numpy.int32)
        metadata[:, 0] = got["number"]
        metadata[:, 1] = numpy.concatenate([numpy.arange(n) for n in got["counts"]])
        if options["do_expand"]:
            # A token's choices are different experts, or the same one twice: rows in order of token, then choice.
            tokens, choices = numpy.nonzero(got["ids"] >= 0)
            expert = got["ids"][tokens, choices]
            order = numpy.argsort(expert, kind="stable")
            place = numpy.empty(len(order), numpy.int64)
            place[order] = numpy.arange(len(order)) - numpy.repeat(numpy.cumsum(counts) - counts, counts)
            metadata[tokens, 2 + choices] = begin[expert] + place
        rows, expanded = count, int(aligned.sum())
        if options["worst"]:
            rows = self.num_ranks * most
            expanded = align(self.num_ranks * most * min(topk, local) + (alignment - 1) * local, alignment)
            metadata = self._padded(metadata, rows, -1)
        slots = numpy.stack([numpy.cumsum(_selected(ids, local, r).any(axis=1)) - 1 for r in range(self.num_ranks)])
        owner = numpy.where(ids >= 0, ids // local, 0)
        slot = numpy.where(ids >= 0, slots[owner, numpy.arange(len(ids))[:, None]], -1).astype(numpy.int32)
        by_neighbour = got["counts"].reshape(self.num_scaleout_ranks, self.num_scaleup_ranks).sum(axis=0)
        give = lambda array: frames.from_numpy(array.astype(numpy.int32), "int32", torch_too)  # noqa: E731
        copy = (topk_idx.clone() if torch_too else topk_idx.copy()) if options["do_handle_copy"] else topk_idx
        return EPHandle(
            do_expand=options["do_expand"], num_experts=experts, expert_alignment=alignment,
            num_max_tokens_per_rank=most, num_sms=options["num_sms"], topk_idx=copy,
            num_recv_tokens=rows, num_expanded_tokens=expanded,
            num_recv_tokens_per_expert_list=[] if options["worst"] else aligned.tolist(),
            psum_num_recv_tokens_per_scaleup_rank=give(numpy.cumsum(by_neighbour)),
            psum_num_recv_tokens_per_expert=give(begin + counts if options["do_expand"] else numpy.cumsum(aligned)),
            num_unaligned_recv_tokens_per_expert=give(counts) if options["do_expand"] else None,
            recv_src_metadata=give(metadata), dst_buffer_slot_idx=give(slot), token_metadata_at_forward=None,
            channel_linked_list=None)

    @staticmethod
    def _padded(array, rows, fill):
        rest = numpy.full((rows - array.shape[0], *array.shape[1:]), fill, array.dtype)
        return numpy.concatenate([array, rest])

    def _give(self, got, handle, values, scales, torch_too, column_major):
        weights = got.get("weights")
        factors = got.get("scales")
        if handle.do_expand:
            # Metadata of a handle is of the first dispatch; what came now came in the same order.
            metadata = frames.to_numpy(handle.recv_src_metadata)[: len(got["number"]), 2:]
            tokens, choices = numpy.nonzero(metadata >= 0)
            at = metadata[tokens, choices]

            def spread(array, picked):
                out = numpy.zeros((handle.num_expanded_tokens, *picked.shape[1:]), array.dtype)
                out[at] = picked
                return out

            rows, ids = spread(got["rows"], got["rows"][tokens]), None
            factors = None if factors is None else spread(factors, factors[tokens])
            weights = None if weights is None else spread(weights, weights[tokens, choices])
        else:
            grown = functools.partial(self._padded, rows=handle.num_recv_tokens)
            rows, ids = grown(got["rows"], fill=0), grown(got["ids"], fill=-1)
            factors = None if factors is None else grown(factors, fill=0)
            weights = None if weights is None else grown(weights, fill=0)
        recv = frames.from_numpy(rows, frames.dtype_name(values), torch_too)
        if factors is not None:
            if column_major:
                factors = frames.column_major(factors)
            recv = (recv, frames.from_numpy(factors, frames.dtype_name(scales), torch_too))
        return (recv, None if ids is None else frames.from_numpy(ids, "int64", torch_too),
                None if weights is None else frames.from_numpy(weights, "float32", torch_too))

    # --- Combine --------------------------------------------------------------------------------

    def combine(self, x, handle, topk_weights=None, bias=None, num_sms=0, num_qps=0, previous_event=None,
                previous_event_before_epilogue=None, async_with_compute_stream=False, allocate_on_comm_stream=False):
        """Rows back to their tokens, added up in float32 in the order of each token's choices, without weights, onto
        the biases. Where a rank computed several choices of a token, its sum is rounded to x's type first
        (allow_multiple_reduction), and with scaleout ranks each host's sum as well. Returns (x [T, H], weights
        float32 [T, K] or None, event)."""
        torch_too, name = frames.is_torch(x), frames.dtype_name(x)
        rows = frames.to_numpy(x)
        weights = None if topk_weights is None else frames.to_numpy(topk_weights)
        metadata = frames.to_numpy(handle.recv_src_metadata)
        ids, local = frames.to_numpy(handle.topk_idx), handle.num_experts // self.num_ranks
        bounds = self._bounds(metadata, handle)
        reduced = handle.do_expand and self.allow_multiple_reduction
        messages = []
        for rank in range(self.num_ranks):
            part = slice(bounds[rank], bounds[rank + 1])
            places = metadata[part, 2:]
            tokens, choices = numpy.nonzero(places >= 0)
            at = places[tokens, choices]
            if reduced:
                sent = self._sum_of_choices(rows, places, name)
            else:
                sent = rows[at] if handle.do_expand else rows[part]
            message = frames.Packer().add(sent)
            if weights is not None:
                message.add((weights[at] if handle.do_expand else weights[part]).astype(numpy.float32))
            messages.append(message.bytes())
        one_per_rank = reduced or not handle.do_expand
        choice_rows, weight_sums = self._home(self._swap(messages), ids, local, rows, one_per_rank, handle.do_expand,
                                              weights is not None)
        if self.num_scaleout_ranks > 1 and self.allow_multiple_reduction:
            choice_rows = self._sum_of_hosts(choice_rows, ids, local, name)
        sums = numpy.zeros((ids.shape[0], rows.shape[1]), numpy.float32)
        for one in bias if isinstance(bias, tuple) else (bias,):
            if one is not None:
                sums += frames.to_f32(frames.to_numpy(one), frames.dtype_name(one))
        for k in range(ids.shape[1]):
            sums += frames.to_f32(choice_rows[:, k], name)
        out = frames.from_numpy(frames.from_f32(sums, name), name, torch_too)
        if weight_sums is not None:
            weight_sums = frames.from_numpy(weight_sums, "float32", torch_too)
        return out, weight_sums, _event()

    def _bounds(self, metadata, handle):
        """Where each source rank's tokens begin among the received ones."""
        count = int(frames.to_numpy(handle.psum_num_recv_tokens_per_scaleup_rank)[-1])
        source = metadata[:count, 0] // max(handle.num_max_tokens_per_rank, 1)
        return numpy.searchsorted(source, numpy.arange(self.num_ranks + 1))

    @staticmethod
    def _sum_of_choices(rows, places, name):
        sums = numpy.zeros((len(places), rows.shape[1]), numpy.float32)
        for k in range(places.shape[1]):
            here = places[:, k] >= 0
            sums[here] += frames.to_f32(rows[places[here, k]], name)
        return frames.from_f32(sums, name)

    def _home(self, bodies, ids, local, rows, one_per_rank, expanded, weighted):
        """[T, K, H] what came for each choice: where a rank sent one row for a token, it stands at its last choice
        there. [T, K] weights."""
        tokens_all, topk = ids.shape
        columns = rows.shape[1]
        out = numpy.zeros((tokens_all, topk, columns), rows.dtype)
        weights = numpy.zeros((tokens_all, topk), numpy.float32) if weighted else None
        for rank, body in enumerate(bodies):
            mine = _selected(ids, local, rank)
            tokens = numpy.flatnonzero(mine.any(axis=1))
            all_tokens, choices = numpy.nonzero(mine)
            if one_per_rank:
                last = topk - 1 - numpy.argmax(mine[tokens, ::-1], axis=1)
                out[tokens, last] = body.take(rows.dtype, (len(tokens), columns))
            else:
                out[all_tokens, choices] = body.take(rows.dtype, (len(all_tokens), columns))
            if weighted and expanded:
                weights[all_tokens, choices] = body.take(numpy.float32, (len(all_tokens),))
            elif weighted:
                weights[tokens] = numpy.where(mine[tokens], body.take(numpy.float32, (len(tokens), topk)), weights[tokens])
        return out, weights

    def _sum_of_hosts(self, choice_rows, ids, local, name):
        """Each host's rows of a token added up and rounded, at the last of its choices there."""
        host = numpy.where(ids >= 0, ids // (local * self.num_scaleup_ranks), -1)
        out = numpy.zeros_like(choice_rows)
        for which in range(self.num_scaleout_ranks):
            mine = host == which
            tokens = numpy.flatnonzero(mine.any(axis=1))
            sums = numpy.zeros((len(tokens), choice_rows.shape[2]), numpy.float32)
            for k in range(ids.shape[1]):
                sums += numpy.where(mine[tokens, k, None], frames.to_f32(choice_rows[tokens, k], name), 0)
            last = ids.shape[1] - 1 - numpy.argmax(mine[tokens, ::-1], axis=1)
            out[tokens, last] = frames.from_f32(sums, name)
        return out
