"""deep_ep.Buffer. A dispatch and a combine are no pair in this API: a handle may be used any number
of times, or never. So each is an exchange of messages of its own, not a Dispatcher's."""

from collections import namedtuple

import numpy

from .. import _frames as frames
from ... import _core
from ...errors import ConfigError
from .domains import physical_domain
from .low_latency import LowLatency
from .utils.event import EventHandle, EventOverlap

#: What dispatch() hands to combine() and to a cached dispatch(); DeepEP's tuple.
Handle = namedtuple(
    "Handle",
    "rank_prefix_matrix channel_prefix_matrix recv_channel_prefix_matrix recv_src_idx is_token_in_rank send_head",
)


#: The same where ranks are on several hosts.
InternodeHandle = namedtuple(
    "InternodeHandle",
    "is_token_in_rank rdma_channel_prefix_matrix gbl_channel_prefix_matrix recv_rdma_channel_prefix_matrix "
    "recv_rdma_rank_prefix_sum recv_gbl_channel_prefix_matrix recv_gbl_rank_prefix_sum recv_src_meta send_rdma_head "
    "send_nvl_head",
)


class Config:
    """Chunk sizes of DeepEP's kernels: accepted, without meaning here."""

    def __init__(self, num_sms=20, num_max_nvl_chunked_send_tokens=6, num_max_nvl_chunked_recv_tokens=256,
                 num_max_rdma_chunked_send_tokens=6, num_max_rdma_chunked_recv_tokens=256):
        self.num_sms = num_sms

    def get_nvl_buffer_size_hint(self, hidden_bytes, num_ranks):
        return 0

    def get_rdma_buffer_size_hint(self, hidden_bytes, num_ranks):
        return 0


def _event():
    return EventOverlap(EventHandle())


class Buffer(LowLatency):
    """The ranks of `group`, a torch process group (or `comm`, of mpi4py; either may be a
    tokenferry.Comm). Collective. Sizes, queue pairs and NVLink options have no meaning here."""

    num_sms = 20

    def __init__(self, group, num_nvl_bytes=0, num_rdma_bytes=0, low_latency_mode=False, num_qps_per_rank=24,
                 allow_nvlink_for_low_latency_mode=True, allow_mnnvl=False, explicitly_destroy=False,
                 enable_shrink=False, comm=None):
        self.comm = frames.comm_of(group, comm)
        self.group = group
        self.rank, self.group_size = self.comm.rank, self.comm.size
        self.low_latency_mode = low_latency_mode
        self.num_nvl_bytes, self.num_rdma_bytes = num_nvl_bytes, num_rdma_bytes
        self.explicitly_destroy = explicitly_destroy
        self.num_rdma_ranks, self.num_nvl_ranks = physical_domain(self.comm)
        self._exchange = _core.ByteExchange(self.comm, dict(mask=enable_shrink))
        self._pending = None  # receives what has been sent last
        self._zero_copy = {}  # rows for the next combine, by the handle's first tensor

    def destroy(self):
        self._finish()
        self._exchange = None

    # --- What there is no such thing of -------------------------------------------------------

    @staticmethod
    def is_sm90_compiled():
        return True  # fp8 is there

    @staticmethod
    def set_num_sms(new_num_sms):
        Buffer.num_sms = new_num_sms

    @staticmethod
    def capture():
        return _event()

    @staticmethod
    def get_dispatch_config(num_ranks):
        return Config(Buffer.num_sms)

    get_combine_config = get_dispatch_config

    def get_comm_stream(self):
        return None

    # --- Messages -----------------------------------------------------------------------------

    def _send(self, messages, received):
        """received(messages by rank, None for those masked) runs when the result is asked for, at the
        latest before the next send."""
        self._finish()
        self._exchange.send(messages)
        self._pending = received

    def _finish(self):
        received, self._pending = self._pending, None
        if received is not None:
            received(self._exchange.recv())

    # --- Normal mode --------------------------------------------------------------------------

    def get_dispatch_layout(self, topk_idx, num_experts, previous_event=None, async_finish=False,
                            allocate_on_comm_stream=False):
        """(tokens for each rank int32 [R], for each host int32 [hosts] or None where there is one, for each expert
        int32 [E], which token to which rank bool [T, R], event)."""
        self._check_experts(num_experts)
        torch_too = frames.is_torch(topk_idx)
        ids = frames.to_numpy(topk_idx)
        in_rank = self._ranks_of(ids, num_experts)
        per_expert = numpy.bincount(ids[ids >= 0].ravel(), minlength=num_experts).astype(numpy.int32)
        give = lambda array: frames.from_numpy(array, array.dtype.name, torch_too)  # noqa: E731
        per_host = None
        if self.num_rdma_ranks > 1:
            per_host = give(self._hosts_of(in_rank).sum(axis=0, dtype=numpy.int32))
        return give(in_rank.sum(axis=0, dtype=numpy.int32)), per_host, give(per_expert), give(in_rank), _event()

    def _hosts_of(self, in_rank):
        return in_rank.reshape(-1, self.num_rdma_ranks, self.num_nvl_ranks).any(axis=2)

    def _check_experts(self, num_experts):
        if num_experts % self.group_size:
            raise ConfigError(f"{num_experts} experts do not divide by {self.group_size} ranks")

    def _ranks_of(self, ids, num_experts):
        in_rank = numpy.zeros((ids.shape[0], self.group_size), bool)
        tokens, choices = numpy.nonzero(ids >= 0)
        in_rank[tokens, ids[tokens, choices] // (num_experts // self.group_size)] = True
        return in_rank

    def dispatch(self, x, handle=None, num_tokens_per_rank=None, num_tokens_per_rdma_rank=None,
                 is_token_in_rank=None, num_tokens_per_expert=None, topk_idx=None, topk_weights=None,
                 expert_alignment=1, num_worst_tokens=0, config=None, previous_event=None, async_finish=False,
                 allocate_on_comm_stream=False):
        """Each token once to every rank that holds one of its experts; rows come in order of source rank,
        then token. Arguments, shapes and returns are DeepEP's."""
        values, scales = x if isinstance(x, tuple) else (x, None)
        torch_too = frames.is_torch(values)
        if handle is not None:
            if topk_idx is not None or topk_weights is not None:
                raise ConfigError("a dispatch with a handle takes no topk_idx and no topk_weights")
            is_token_in_rank = handle[0] if len(handle) > 6 else handle[4]
        elif is_token_in_rank is None or num_tokens_per_expert is None:
            raise ConfigError("dispatch needs a handle, or what get_dispatch_layout returns")
        in_rank = frames.to_numpy(is_token_in_rank)
        rows = frames.to_numpy(values)
        factors = None if scales is None else frames.to_numpy(scales)
        ids = None if topk_idx is None else frames.to_numpy(topk_idx)
        weights = None if topk_weights is None else frames.to_numpy(topk_weights)
        local = 0 if num_tokens_per_expert is None else num_tokens_per_expert.shape[0] // self.group_size
        counts = in_rank.sum(axis=0, dtype=numpy.int64)
        messages = []
        for rank in range(self.group_size):
            chosen = numpy.flatnonzero(in_rank[:, rank]).astype(numpy.int32)
            message = frames.Packer().add(counts).add(chosen).add(rows[chosen])
            if factors is not None:
                message.add(factors[chosen])
            if ids is not None:
                here = ids[chosen].astype(numpy.int64) - rank * local
                mine = (here >= 0) & (here < local)
                message.add(numpy.where(mine, here, -1))
                if weights is not None:
                    message.add(numpy.where(mine, weights[chosen], 0).astype(numpy.float32))
            messages.append(message.bytes())
        found = {}
        self._send(messages, lambda got: found.update(
            self._unpack(got, rows, factors, None if ids is None else ids.shape[1], weights is not None)))
        self._finish()
        result = self._give(found, values, scales, torch_too, num_worst_tokens)
        if handle is not None:
            return result[0], None, None, None, None, _event()
        per_expert = []
        if ids is not None and num_worst_tokens == 0:
            got = found["ids"]
            per_expert = numpy.bincount(got[got >= 0], minlength=local)
        elif num_worst_tokens == 0:
            per_expert = self._count_by_layout(frames.to_numpy(num_tokens_per_expert), local)
        per_expert = [int(-(-n // expert_alignment) * expert_alignment) for n in per_expert]
        made = self._handle(found, in_rank, torch_too)
        return (*result, per_expert, made, _event())

    def _count_by_layout(self, per_expert, local):
        """Without ids on the way: how many tokens each of this rank's experts gets from all ranks."""
        parts = per_expert.astype(numpy.int64).reshape(self.group_size, local)
        total = numpy.zeros(local, numpy.int64)
        self._send([frames.Packer().add(part).bytes() for part in parts],
                   lambda got: [total.__iadd__(m.view(numpy.int64)) for m in got if m is not None])
        self._finish()
        return total

    def _unpack(self, got, rows, factors, topk, has_weights):
        """Everything in order of source rank."""
        size, columns = self.group_size, rows.shape[1]
        matrix = numpy.zeros((size, size), numpy.int64)
        parts = {"src": [], "rows": [], "scales": [], "ids": [], "weights": []}
        for source, message in enumerate(got):
            if message is None:
                continue
            body = frames.Unpacker(message)
            matrix[source] = body.take(numpy.int64, (size,))
            count = int(matrix[source, self.rank])
            parts["src"].append(body.take(numpy.int32, (count,)))
            parts["rows"].append(body.take(rows.dtype, (count, columns)))
            if factors is not None:
                parts["scales"].append(body.take(factors.dtype, (count, factors.shape[1])))
            if topk is not None:
                parts["ids"].append(body.take(numpy.int64, (count, topk)))
                if has_weights:
                    parts["weights"].append(body.take(numpy.float32, (count, topk)))
        found = {name: numpy.concatenate(arrays) for name, arrays in parts.items() if arrays}
        found["prefix"] = numpy.cumsum(matrix, axis=0).astype(numpy.int32)
        return found

    def _give(self, found, values, scales, torch_too, num_worst_tokens):
        def padded(name, fill):
            array = found.get(name)
            if array is None or not num_worst_tokens:
                return array
            if array.shape[0] > num_worst_tokens:
                raise ConfigError(f"{array.shape[0]} tokens came; num_worst_tokens is {num_worst_tokens}")
            rest = numpy.full((num_worst_tokens - array.shape[0], array.shape[1]), fill, array.dtype)
            return numpy.concatenate([array, rest])

        recv = frames.from_numpy(padded("rows", 0), frames.dtype_name(values), torch_too)
        if scales is not None:
            recv = (recv, frames.from_numpy(padded("scales", 0), frames.dtype_name(scales), torch_too))
        ids, weights = padded("ids", -1), padded("weights", 0)
        return (
            recv,
            None if ids is None else frames.from_numpy(ids, "int64", torch_too),
            None if weights is None else frames.from_numpy(weights, "float32", torch_too),
        )

    def _handle(self, found, in_rank, torch_too):
        give = lambda array: frames.from_numpy(  # noqa: E731
            numpy.ascontiguousarray(array), array.dtype.name, torch_too)
        prefix = found["prefix"]
        counts = in_rank.sum(axis=0, dtype=numpy.int32).reshape(-1, 1)
        received = numpy.diff(prefix[:, self.rank], prepend=0).astype(numpy.int32).reshape(-1, 1)
        if self.num_rdma_ranks == 1:
            return Handle(give(prefix), give(counts), give(received), give(found["src"]), give(in_rank),
                          give(self._head(in_rank)))
        hosts = self._hosts_of(in_rank)
        of_host = prefix[self.num_nvl_ranks - 1 :: self.num_nvl_ranks, self.rank]
        return InternodeHandle(
            is_token_in_rank=give(in_rank), rdma_channel_prefix_matrix=give(hosts.sum(axis=0, dtype=numpy.int32)[:, None]),
            gbl_channel_prefix_matrix=give(counts),
            recv_rdma_channel_prefix_matrix=give(numpy.diff(of_host, prepend=0).astype(numpy.int32)[:, None]),
            recv_rdma_rank_prefix_sum=give(of_host), recv_gbl_channel_prefix_matrix=give(received),
            recv_gbl_rank_prefix_sum=give(prefix[:, self.rank]), recv_src_meta=give(found["src"]),
            send_rdma_head=give(self._head(hosts)), send_nvl_head=give(self._head(in_rank)))

    @staticmethod
    def _head(chosen):
        return numpy.where(chosen, numpy.cumsum(chosen, axis=0) - 1, -1).astype(numpy.int32)

    def combine(self, x, handle, topk_weights=None, bias=None, config=None, previous_event=None,
                async_finish=False, allocate_on_comm_stream=False):
        """Rows back to their tokens and added up there, in order of ranks, in float32, without weights.
        Returns (x [T, H], weights float32 [T, K] or None, event)."""
        torch_too, name = frames.is_torch(x), frames.dtype_name(x)
        rows = frames.to_numpy(x)
        weights = None if topk_weights is None else frames.to_numpy(topk_weights)
        if len(handle) > 6:
            in_rank, *_, prefix, source_of, _, _ = (frames.to_numpy(member) for member in handle)
        else:
            prefix, source_of = frames.to_numpy(handle[0])[:, self.rank], frames.to_numpy(handle[3])
            in_rank = frames.to_numpy(handle[4])
        bounds = numpy.concatenate([[0], prefix])
        messages = []
        for rank in range(self.group_size):
            part = slice(bounds[rank], bounds[rank + 1])
            message = frames.Packer().add(source_of[part]).add(rows[part])
            if weights is not None:
                message.add(weights[part].astype(numpy.float32))
            messages.append(message.bytes())
        tokens = in_rank.shape[0]
        sums = numpy.zeros((tokens, rows.shape[1]), numpy.float32)
        weight_sums = None if weights is None else numpy.zeros((tokens, weights.shape[1]), numpy.float32)

        def received(got):
            counts = in_rank.sum(axis=0)
            for source, message in enumerate(got):
                if message is None:
                    continue
                body = frames.Unpacker(message)
                at = body.take(numpy.int32, (int(counts[source]),))
                sums[at] += frames.to_f32(body.take(rows.dtype, (len(at), rows.shape[1])), name)
                if weights is not None:
                    weight_sums[at] += body.take(numpy.float32, (len(at), weights.shape[1]))

        self._send(messages, received)
        self._finish()
        for one in bias if isinstance(bias, tuple) else (bias,):
            if one is not None:
                sums += frames.to_f32(frames.to_numpy(one), frames.dtype_name(one))
        out = frames.from_numpy(frames.from_f32(sums, name), name, torch_too)
        if weight_sums is not None:
            weight_sums = frames.from_numpy(weight_sums, "float32", torch_too)
        return out, weight_sums, _event()

    # --- DeepEP's own steps of the two, which some callers take by name ---------------------------

    def internode_dispatch(self, x, handle=None, num_tokens_per_rank=None, num_tokens_per_rdma_rank=None,
                           is_token_in_rank=None, num_tokens_per_expert=None, topk_idx=None, topk_weights=None,
                           expert_alignment=1, config=None, previous_event=None, async_finish=False,
                           allocate_on_comm_stream=False):
        return self.dispatch(x, handle, num_tokens_per_rank, num_tokens_per_rdma_rank, is_token_in_rank,
                             num_tokens_per_expert, topk_idx, topk_weights, expert_alignment)

    def internode_combine(self, x, handle, topk_weights=None, bias=None, config=None, previous_event=None,
                          async_finish=False, allocate_on_comm_stream=False):
        return self.combine(x, handle, topk_weights, bias)
