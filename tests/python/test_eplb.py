"""Plans of the balancer."""

import numpy as np
import pytest
import tokenferry
from tokenferry import eplb

LOAD = np.array([[90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86]])


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.float32, np.float64])
def test_a_plan_is_even_and_complete(dtype):
    plan = eplb.plan(LOAD.astype(dtype), 4, redundant=4)
    slots = plan.physical_to_logical[0]
    assert len(slots) == 16 and set(slots) == set(range(12))
    replicas = np.bincount(slots, minlength=12)
    ranks = (LOAD[0] / replicas)[slots].reshape(4, 4).sum(axis=1)
    assert plan.balance_after == pytest.approx(ranks.mean() / ranks.max())
    assert plan.balance_before < plan.balance_after <= plan.balance_bound + 1e-12
    assert plan.placement(0, 12, 4).expert_of_slot == slots


def test_from_a_current_placement_with_few_moves():
    first = eplb.plan(LOAD, 4, redundant=4)
    again = eplb.plan(LOAD, 4, redundant=4, policy="incremental", current=first.physical_to_logical,
                      max_transfers=1)
    assert again.transfers <= 1
    assert again.balance_after >= again.balance_before == pytest.approx(first.balance_after)


@pytest.mark.parametrize(
    "load, options, text",
    [(LOAD, dict(policy="best"), "best"), (LOAD.astype(bool), {}, "bool"), (-LOAD, {}, "negative|-"),
     (LOAD, dict(redundant=-1), "redundant"), (LOAD[0], {}, "load")],
)
def test_what_cannot_be_is_refused(load, options, text):
    with pytest.raises(tokenferry.ConfigError, match=text):
        eplb.plan(load, 4, **options)
