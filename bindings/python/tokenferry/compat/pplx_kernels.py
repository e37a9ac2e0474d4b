"""pplx_kernels.AllToAll over our Dispatcher."""

import numpy

from ..all_to_all import AllToAll as Exchange
from ..errors import ConfigError
from . import _frames as frames

#: Rows as numpy has them, and what carries them without rounding; their fp8 comes with scales per 128.
_WIRES = {"bfloat16": "bf16", "float16": "f32", "float32": "f32", "float8_e4m3fn": "fp8"}


class AllToAll:
    """One exchange in flight: dispatch, then combine, each as a whole or as send and receive.

    Made by intranode() or internode(), which are the same here. `group`: the ranks, a torch process group
    (None: the one named group_name, or all) or a tokenferry.Comm.
    """

    def __init__(self, max_num_tokens, num_experts, experts_per_token, rank, world_size, dp_size, hidden_dim,
                 hidden_dim_bytes, hidden_dim_scale_bytes, group=None):
        if world_size % dp_size or world_size // dp_size <= 1:
            raise ConfigError(f"{world_size} ranks and dp_size {dp_size}: it must divide them, with more than one group")
        self.max_num_tokens, self.num_experts = max_num_tokens, num_experts
        self.experts_per_token, self.dp_size, self.hidden_dim = experts_per_token, dp_size, hidden_dim
        self._comm = frames.comm_of(group)
        if (self._comm.rank, self._comm.size) != (rank, world_size):
            raise ConfigError(f"rank {rank} of {world_size} was asked for; the group says {self._comm.rank} "
                              f"of {self._comm.size}")
        self._lane = self._wires = self._rows = None
        # Every type of results fits into float32; the first combine shows whether less is enough.
        self._results = "f32"
        # torch.compile(all_to_all.dispatch) is what callers do; there is nothing for it in here.
        self._dispatch, self._combine = (frames.outside_graphs(f) for f in (self._dispatch_rows, self._combine_rows))

    @classmethod
    def intranode(cls, max_num_tokens, num_experts, experts_per_token, rank, world_size, dp_size, hidden_dim,
                  hidden_dim_bytes, hidden_dim_scale_bytes, group_name="default", group=None):
        return cls(max_num_tokens, num_experts, experts_per_token, rank, world_size, dp_size, hidden_dim,
                   hidden_dim_bytes, hidden_dim_scale_bytes, group or _named(group_name))

    @classmethod
    def internode(cls, max_num_tokens, num_experts, experts_per_token, rank, world_size, dp_size, hidden_dim,
                  hidden_dim_bytes, hidden_dim_scale_bytes, group=None):
        return cls(max_num_tokens, num_experts, experts_per_token, rank, world_size, dp_size, hidden_dim,
                   hidden_dim_bytes, hidden_dim_scale_bytes, group)

    def _lane_for(self, name):
        """Made when the types of rows or results are seen to be others; collective, since all ranks see the same."""
        wires = (_WIRES[name], self._results)
        if wires != self._wires:
            self.destroy()
            self._wires = wires
            self._lane = Exchange(self._comm, num_experts=self.num_experts, topk=self.experts_per_token,
                                  hidden=self.hidden_dim, max_tokens=self.max_num_tokens, tp=self.dp_size,
                                  layout="padded", dispatch_dtype=wires[0], combine_dtype=wires[1])
        return self._lane

    def dispatch(self, out_expert_num_tokens, out_expert_x, out_expert_x_scale, dp_x, dp_x_scale, indices,
                 bound_m, do_send=True, do_recv=True):
        """dp_x [m, H] and indices uint32 [m, K] to the ranks of their experts. Writes how many rows each of
        this rank's experts has got (int32 [L]), and the rows [L, max_num_tokens * groups, H]."""
        self._dispatch(out_expert_num_tokens, out_expert_x, out_expert_x_scale, dp_x, dp_x_scale, indices, bound_m,
                       do_send, do_recv)

    def _dispatch_rows(self, out_expert_num_tokens, out_expert_x, out_expert_x_scale, dp_x, dp_x_scale, indices,
                       bound_m, do_send, do_recv):
        if do_send:
            lane = self._lane_for(frames.dtype_name(dp_x))
            count = dp_x.shape[0] if bound_m is None else int(bound_m[0])
            x = dp_x[:count]
            if self._wires[0] == "f32":
                x = frames.to_numpy(x).astype(numpy.float32)
            lane.dispatch_send(x, indices[:count], None,
                               scales=None if dp_x_scale is None else dp_x_scale[:count])
        if do_recv:
            self._rows = rows = self._lane.dispatch_recv()
            counts, got, out = rows.counts, frames.to_numpy(rows.x), frames.to_numpy(out_expert_x)
            frames.to_numpy(out_expert_num_tokens)[...] = counts
            scales = None if out_expert_x_scale is None else frames.to_numpy(out_expert_x_scale)
            for expert, n in enumerate(counts):
                out[expert, :n] = got[expert, :n]
                if scales is not None:
                    scales[expert, :n] = frames.to_numpy(rows.scales)[expert, :n]

    def combine(self, out_tokens, indices, weights, expert_y, bound_m, do_send=True, do_recv=True):
        """expert_y as dispatch laid the rows out, back to their tokens: out_tokens[:m] = weighted sums."""
        self._combine(out_tokens, indices, weights, expert_y, bound_m, do_send, do_recv)

    def _combine_rows(self, out_tokens, indices, weights, expert_y, bound_m, do_send, do_recv):
        if do_send:
            out, name = frames.to_numpy(self._rows.out), frames.dtype_name(expert_y)
            self._results = "bf16" if name == "bfloat16" else "f32"
            if self._wires[1] == "bf16" and name != "bfloat16":
                raise ConfigError(f"results are {name} now and were bfloat16 before; make another AllToAll for them")
            values = frames.to_numpy(expert_y)
            wanted = "bfloat16" if self._wires[1] == "bf16" else "float32"
            for expert, n in enumerate(self._rows.counts):
                part = values[expert, :n]
                out[expert, :n] = part if name == wanted else frames.from_f32(frames.to_f32(part, name), wanted)
            self._lane.combine_send()
        if do_recv:
            count = indices.shape[0] if bound_m is None else int(bound_m[0])
            self._lane.set_result_weights(weights[:count], indices[:count])
            self._lane.combine_recv(out_tokens[:count])

    def destroy(self):
        if self._lane is not None:
            self._lane.close()
        self._lane = self._wires = self._rows = None


def _named(name):
    if name == "default":
        return None
    from torch.distributed import distributed_c10d as c10d

    return c10d._resolve_process_group(name)


def nvshmem_init(*args, **kwargs):
    """Accepted: ranks meet through their group."""


def nvshmem_finalize():
    """Accepted."""


__all__ = ["AllToAll", "nvshmem_finalize", "nvshmem_init"]
