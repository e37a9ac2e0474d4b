"""dlinfer's fused_moe_all2all, in both of its forms, over moe_forward_from_topk and our experts.

    fused_moe_all2all(hidden_states, gate_up_weights, down_weights, topk_weights, topk_ids, renormalize, ep_size,
                      ep_rank, ep_group, expert_ids_per_ep_rank, chunked_moe_layout=None)
    fused_moe_all2all(hidden_states, router_logits, moe_config, ..., expert_kernel, expert_kwargs)

The first is that of dlinfer's source; the second that of its document, with the router and the experts' kernel handed
over: here `fused_moe_all2all_with_kernel`.
"""

import numpy

from ..all_to_all import AllToAll, Experts
from ..errors import ConfigError
from . import _frames as frames

_comms = {}  # of process groups, which live as long as the process


def _comm(group):
    key = id(group)
    if key not in _comms or _comms[key][0] is not group:
        made = frames.comm_of(group)
        if made is group:
            return group
        _comms[key] = (group, made)
    return _comms[key][1]


def _lane(comm, **options):
    """One for each shape: layers run one after another."""
    key = ("lane", *sorted(options.items()))
    return frames.kept(comm, key, (), lambda: AllToAll(comm, backend="alltoallv", **options))


def _wire(x):
    name = frames.dtype_name(x)
    if name not in ("bfloat16", "float32"):
        raise ConfigError(f"hidden_states are {name}; here they are bfloat16 or float32")
    return "bf16" if name == "bfloat16" else "f32"


def _packed(gate_up, down, comm):
    """Packed once: weights are told apart by the tensors themselves."""
    key = ("experts", id(gate_up), id(down))
    return frames.kept(comm, key, (gate_up, down), lambda: Experts(gate_up, down, comm=comm))


def fused_moe_all2all(hidden_states, gate_up_weights, down_weights, topk_weights, topk_ids, renormalize, ep_size,
                      ep_rank, ep_group, expert_ids_per_ep_rank, chunked_moe_layout=None, max_tokens=4096):
    """A MoE layer: hidden_states [T, H], gate_up_weights [L, 2 * I, H] and down_weights [L, H, I] of this rank's
    experts, topk_weights and topk_ids [T, K] -> [T, H]. Collective. renormalize divides topk_weights by their sum, in
    place as theirs. Weights are packed at their first use and must stay as they are."""
    comm = _comm(ep_group)
    if (comm.size, comm.rank) != (ep_size, ep_rank):
        raise ConfigError(f"rank {ep_rank} of {ep_size} was asked for; the group says {comm.rank} of {comm.size}")
    if chunked_moe_layout is not None:
        raise ConfigError("chunked_moe_layout is for NPUs; moe_forward cuts tokens into chunks by itself")
    weights = topk_weights
    if renormalize:
        view = frames.to_numpy(weights)
        view /= view.sum(axis=-1, keepdims=True)
    wire = _wire(hidden_states)
    local = gate_up_weights.shape[0]
    a2a = _lane(comm, num_experts=local * ep_size, topk=topk_ids.shape[1], hidden=hidden_states.shape[1],
                max_tokens=max_tokens, dispatch_dtype=wire, combine_dtype=wire)
    return a2a.moe_forward_from_topk(hidden_states, topk_ids, _f32(weights), _packed(gate_up_weights, down_weights, comm))


def _f32(weights):
    if frames.dtype_name(weights) == "float32":
        return weights
    values = frames.to_f32(frames.to_numpy(weights), frames.dtype_name(weights))
    return frames.from_numpy(values, "float32", frames.is_torch(weights))


def fused_moe_all2all_with_kernel(hidden_states, router_logits, topk, renormalize, ep_group, expert_kernel,
                                  expert_kwargs=None, max_tokens=4096):
    """The document's form: router_logits [T, E], softmax over all experts, the topk greatest; expert_kernel(rows
    [n, H], group_list int64 [L] (rows of each of this rank's experts), **expert_kwargs) -> [n, H]."""
    comm, wire = _comm(ep_group), _wire(hidden_states)
    torch_too = frames.is_torch(hidden_states)
    a2a = _lane(comm, num_experts=router_logits.shape[1], topk=topk, hidden=hidden_states.shape[1],
                max_tokens=max_tokens, dispatch_dtype=wire, combine_dtype=wire, renormalize=renormalize,
                layout="ragged", row_alignment=1)

    def experts(rows):
        groups = frames.from_numpy(rows.counts.astype(numpy.int64), "int64", torch_too)
        rows.out[:] = expert_kernel(rows.x, groups, **(expert_kwargs or {}))

    return a2a.moe_forward(hidden_states, router_logits, experts)


__all__ = ["fused_moe_all2all", "fused_moe_all2all_with_kernel"]
