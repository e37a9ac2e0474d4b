"""Where experts should lie, by load: the planner behind `ferry eplb plan`."""

from dataclasses import dataclass

from . import _core


@dataclass(frozen=True)
class Plan:
    """physical_to_logical: [layer][P], expert of each slot, -1 = empty; slot // (P / ranks) is its rank.
    shares: [layer][P], what each slot should take of its expert; empty unless weighted.
    balance_before, balance_after, balance_bound: mean over max of the ranks' loads, averaged over
        layers with any: of the current placement, of this one, and the best that there could be.
    transfers: experts that travel between ranks to get there.
    """

    physical_to_logical: list
    shares: list
    balance_before: float
    balance_after: float
    balance_bound: float
    transfers: int

    def placement(self, layer, num_experts, num_ranks):
        """The layer's map for AllToAll calls."""
        return _core.Placement(self.physical_to_logical[layer], num_experts, num_ranks)


def plan(load, ranks, *, redundant=0, policy="greedy", current=None, nodes=1, groups=1,
         uneven="allow_empty", weighted=False, max_transfers=0, max_transfers_per_pair=0):
    """A placement for `load` [layers, experts], tokens of each expert (any number type).

    redundant: slots beyond one an expert. policy: 'identity', 'deepseek', 'greedy', 'incremental' or
    'risk' (docs/eplb.md). current: [layer][P] as Plan has it, None: experts in order. nodes: equal runs
    of ranks; groups: equal runs of experts that routing picks together. uneven: 'allow_empty', 'strict'
    or 'adjust', where slots do not divide by ranks. The same on every rank that has the same load.
    """
    return Plan(**_core.plan(load, dict(
        ranks=ranks, redundant=redundant, policy=policy, current=current, nodes=nodes, groups=groups,
        uneven=uneven, weighted=weighted, max_transfers=max_transfers,
        max_transfers_per_pair=max_transfers_per_pair)))
