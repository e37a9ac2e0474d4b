"""fused_ep_moe_from_topk in the style of sglang-jax's fused kernel: routing done, ids may be physical.

sglang-jax has fused_ep_moe, whose kernel routes; a variant that takes ids was planned and is not in its source, so
this order of arguments is ours: the tensors in the order of fused_ep_moe, then the routing. Weights lie as theirs do,
[experts, in, out]. Arrays are anything with DLPack on the CPU, jax's own included.
"""

import numpy

from ..all_to_all import AllToAll, Experts
from . import _frames as frames


def fused_ep_moe_from_topk(tokens, w1, w2, w3, topk_weights, topk_ids, *, comm, num_experts=None, act_fn="silu",
                           physical_ids=False, max_tokens=4096):
    """tokens [T, H] bfloat16 or float32; w1 (gate) and w3 (up) [L, H, I], w2 (down) [L, I, H] of this rank's slots;
    topk_weights float32 and topk_ids [T, K]. num_experts: of all ranks, where replicas make them fewer than slots;
    then physical_ids says that ids are slots. Returns [T, H], a numpy or torch array as `tokens`. Collective.
    Numerically what moe_forward gives for the same routing."""
    gate, down, up = (_plain(w) for w in (w1, w2, w3))
    x = tokens if frames.is_torch(tokens) else _plain(tokens)
    slots = gate.shape[0] * comm.size
    num_experts = slots if num_experts is None else num_experts
    wire = "bf16" if frames.dtype_name(x) == "bfloat16" else "f32"

    def pack():
        w13 = numpy.ascontiguousarray(numpy.concatenate([gate, up], axis=2).transpose(0, 2, 1))
        return Experts(w13, numpy.ascontiguousarray(down.transpose(0, 2, 1)), comm=comm, activation=act_fn)

    experts = frames.kept(comm, ("experts", id(w1), id(w2), id(w3)), (w1, w2, w3), pack)
    options = dict(num_experts=num_experts, topk=topk_ids.shape[1], hidden=x.shape[1], redundant=slots - num_experts,
                   max_tokens=max_tokens, dispatch_dtype=wire, combine_dtype=wire)
    a2a = frames.kept(comm, ("lane", *options.items()), (), lambda: AllToAll(comm, **options))
    return a2a.moe_forward_from_topk(x, _plain(topk_ids), _plain(topk_weights), experts, physical=physical_ids)


def _plain(array):
    return frames.to_numpy(array) if frames.is_torch(array) else numpy.asarray(array)


__all__ = ["fused_ep_moe_from_topk"]
