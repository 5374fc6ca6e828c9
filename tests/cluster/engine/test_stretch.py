"""Stretches: what their steps cost, when they end, and where they are cut."""

from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbsim.base.errors import PluginError
from cbsim.cluster.engine.stretch import Stretch, group_steps_s
from cbsim.cost.cost_model import StepShape
from tests.simulation import FixedCost


class GrowingCost(FixedCost):
    """A second, and a bit more for every decode, token of context and token of the longest."""

    def step_s(self, shape: StepShape) -> float:
        return 1.0 + 0.1 * shape.num_decodes + 0.01 * shape.decode_context + 0.003 * shape.max_decode_context


durations = st.lists(st.floats(0.001, 10.0), min_size=1, max_size=12)


@settings(max_examples=200, deadline=None)
@given(times=durations, num_before=st.integers(1, 3), until_s=st.floats(0.0, 60.0))
def test_a_cut_keeps_the_first_and_whatever_is_decided_before(
    times: list[float], num_before: int, until_s: float
) -> None:
    """The step at place i is decided at the i-th of the instants before and the ends."""
    before = [0.5 * (i + 1) for i in range(num_before)]
    ends = list(accumulate(times, initial=before[-1]))[1:]
    decided_at = (before + ends)[: len(times)]
    kept = 1 + sum(at_s < until_s for at_s in decided_at[1:])
    stretch = Stretch(before, list(times), list(ends), 1)
    assert stretch.last_decided_at_s == decided_at[-1]
    stretch.cut(until_s)
    assert stretch.durations == times[:kept]
    assert stretch.ends == before + ends[:kept]


def test_steps_are_priced_one_by_one_and_summed_in_order() -> None:
    cost = GrowingCost()
    durations_s, ends = group_steps_s(cost, (3, 30, 12), 4, 2.0)
    assert durations_s == [cost.step_s(StepShape((), 0, 3, 30 + 3 * i, 12 + i)) for i in range(4)]
    assert ends == list(accumulate(durations_s, initial=2.0))[1:]
    assert group_steps_s(cost, (3, 30, 12), 1, 2.0) == (durations_s[:1], ends[:1])


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_step_of_no_time_or_for_ever_is_refused(bad: float, place: int) -> None:
    class Broken(GrowingCost):
        def decodes_s(
            self, num_decodes: int, decode_context: int, max_decode_context: int, num_steps: int
        ) -> list[float]:
            return [bad if i == place else 1.0 for i in range(num_steps)]

    with pytest.raises(PluginError, match=r"Broken: a step of .* allowed: more than 0 and finite"):
        group_steps_s(Broken(), (1, 5, 5), 3, 0.0)
