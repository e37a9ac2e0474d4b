"""DeepSeek's eplb: rebalance_experts, by the planner's policy of that name."""

import numpy

from .. import _core
from ..errors import ConfigError
from . import _frames as frames


def rebalance_experts(weight, num_replicas, num_groups, num_nodes, num_gpus):
    """Where replicas should lie for loads `weight` [layers, E].

    Returns (physical_to_logical_map int64 [layers, num_replicas], logical_to_physical_map int64
    [layers, E, most replicas of an expert], -1 where there are fewer, expert_count int64 [layers, E]).
    """
    loads = numpy.ascontiguousarray(frames.to_numpy(weight), numpy.float64)
    if loads.ndim != 2:
        raise ConfigError(f"weight has {loads.ndim} dimensions; it must be [layers, experts]")
    layers, experts = loads.shape
    if num_replicas % num_gpus or num_replicas < experts:
        raise ConfigError(
            f"{num_replicas} replicas of {experts} experts on {num_gpus} ranks: at least one an expert, and "
            "equally many on each rank")
    if num_groups % num_nodes:  # then groups do not matter, as in theirs
        num_groups = num_nodes = 1
    plan = _core.plan(loads, dict(ranks=num_gpus, nodes=num_nodes, groups=num_groups, policy="deepseek",
                                  redundant=num_replicas - experts, uneven="strict"))
    slots = numpy.asarray(plan["physical_to_logical"], numpy.int64)
    count = numpy.stack([numpy.bincount(row, minlength=experts) for row in slots]).astype(numpy.int64)
    logical = numpy.full((layers, experts, int(count.max())), -1, numpy.int64)
    for layer in range(layers):
        for expert in range(experts):
            logical[layer, expert, : count[layer, expert]] = numpy.flatnonzero(slots[layer] == expert)
    give = lambda array: frames.from_numpy(array, "int64", frames.is_torch(weight))  # noqa: E731
    return give(slots), give(logical), give(count)


__all__ = ["rebalance_experts"]
