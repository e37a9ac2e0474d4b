"""What ElasticBuffer has beside dispatch and combine: sizes, all-gather sessions, Engram's storage, tensors
between neighbours of a pipeline. DeepEP calls the last three experimental."""

import collections
import contextlib
import math

import numpy

from .. import _frames as frames
from ... import _core
from ...errors import ConfigError, Error
from .utils.math import align

_ALIGNMENT = 2 << 20  # of every size that DeepEP says


class ElasticExtras:
    # --- Sizes: what DeepEP would reserve. Here memory is what is used. ---------------------------

    @staticmethod
    def get_buffer_size_hint(group, num_max_tokens_per_rank, hidden, num_topk=0, use_fp8_dispatch=False,
                             allow_hybrid_mode=True, allow_multiple_reduction=True):
        return align(group.size() * num_max_tokens_per_rank * hidden * 2, _ALIGNMENT)

    @staticmethod
    def get_engram_storage_size_hint(num_entries, hidden, num_max_tokens_per_rank, dtype=None):
        entry = align(hidden * (2 if dtype is None else dtype.itemsize), 32)
        return align(entry * num_max_tokens_per_rank, _ALIGNMENT), align(entry * num_entries, _ALIGNMENT)

    @staticmethod
    def get_pp_buffer_size_hint(num_max_tensor_bytes, num_max_inflight_tensors):
        return align(align(num_max_tensor_bytes, 32) * num_max_inflight_tensors * 4, _ALIGNMENT)

    @staticmethod
    def get_agrs_num_max_session_bytes(group, shapes, dtype):
        shapes = shapes if isinstance(shapes[0], tuple) else (shapes,)
        return sum(align(group.size() * math.prod(shape) * dtype.itemsize, 32) for shape in shapes)

    @staticmethod
    def get_agrs_buffer_size_hint(group, num_max_session_bytes):
        return align(num_max_session_bytes, _ALIGNMENT)

    # --- All-gather sessions: every call is collective, and done when it returns ------------------

    _in_session = False

    def agrs_set_config(self, num_max_session_bytes, num_max_all_gathers_per_session):
        self.barrier()

    def create_agrs_session(self):
        if self._in_session:
            raise Error("an all-gather session is open already")
        self._in_session = True

    def destroy_agrs_session(self):
        if not self._in_session:
            raise Error("no all-gather session is open")
        self._in_session = False

    @contextlib.contextmanager
    def agrs_new_session(self, enabled=True):
        if enabled:
            self.create_agrs_session()
        try:
            yield
        finally:
            if enabled:
                self.destroy_agrs_session()

    def agrs_get_inplace_tensor(self, shapes, dtype):
        import torch

        if isinstance(shapes[0], tuple):
            return tuple(torch.zeros(shape, dtype=dtype) for shape in shapes)
        return torch.zeros(shapes, dtype=dtype)

    def all_gather(self, t):
        """(tensor [R, ...] of all ranks, a function that waits for it); of a sequence one tensor each."""
        if not self._in_session:
            raise Error("all_gather needs a session (create_agrs_session)")
        tensors = list(t) if isinstance(t, (list, tuple)) else [t]
        gathered = tuple(self._gather(one) for one in tensors)
        return (*gathered, lambda: None)

    def _gather(self, one):
        array = frames.to_numpy(one)
        message = frames.Packer().add(array).bytes()
        parts = [body.take(array.dtype, array.shape) for body in self._swap([message] * self.num_ranks)]
        return frames.from_numpy(numpy.stack(parts), frames.dtype_name(one), frames.is_torch(one))

    # --- Engram: every rank keeps a copy of what all have written ---------------------------------

    _storage = None

    def engram_write(self, storage, sf=None):
        """Collective: this rank's entries [n, H], as many on every rank; sf: the scales of all ranks' entries."""
        whole = self._gather(storage)
        self._storage = (frames.to_numpy(whole).reshape(-1, storage.shape[1]), storage, sf)

    def engram_fetch(self, indices, num_qps=0, use_tma_aligned_col_major_sf=False):
        """A function that returns (entries [tokens, entries of each * H], scales or None)."""
        if self._storage is None:
            raise Error("engram_fetch before engram_write")
        whole, storage, sf = self._storage
        tokens, torch_too = indices.shape[0], frames.is_torch(storage)
        at = frames.to_numpy(indices).reshape(-1)
        data = frames.from_numpy(whole[at].reshape(tokens, -1), frames.dtype_name(storage), torch_too)
        if sf is None:
            return lambda: (data, None)
        factors = frames.to_numpy(sf)[at].reshape(tokens, -1)
        if use_tma_aligned_col_major_sf:
            factors = frames.column_major(factors)
        factors = frames.from_numpy(factors, frames.dtype_name(sf), torch_too)
        return lambda: (data, factors)

    # --- A pipeline's neighbours: over the caller's own process group -----------------------------

    _sends = None
    _most_sends = 1

    def pp_set_config(self, num_max_tensor_bytes, num_max_inflight_tensors):
        if isinstance(self.group, _core.Comm):
            raise ConfigError("pp_send and pp_recv need a torch process group, not a Comm")
        self._sends, self._most_sends = collections.deque(), num_max_inflight_tensors
        self.barrier()

    def _neighbour(self, rank):
        if self._sends is None:
            raise Error("pp_set_config comes first")
        if rank not in ((self.rank_idx + 1) % self.num_ranks, (self.rank_idx - 1) % self.num_ranks):
            raise ConfigError(f"rank {rank} is no neighbour of rank {self.rank_idx}")

    def pp_send(self, t, dst_rank_idx, num_sms=0):
        import torch.distributed as dist

        self._neighbour(dst_rank_idx)
        while len(self._sends) >= self._most_sends * 2:
            self._sends.popleft()[0].wait()
        copy = t.clone()
        self._sends.append((dist.isend(copy, group=self.group, group_dst=dst_rank_idx), copy))

    def pp_recv(self, t, src_rank_idx, num_sms=0):
        import torch.distributed as dist

        self._neighbour(src_rank_idx)
        dist.recv(t, group=self.group, group_src=src_rank_idx)
