"""Stretch: group steps one behind the other, decided at once. What they cost and how far they reach."""

from __future__ import annotations

import math
from bisect import bisect_left
from itertools import accumulate

from cbsim.cluster.engine.engine_interface import checked_s
from cbsim.cost.cost_model import CostModel, StepShape


class Stretch:
    """Steps of the decode group, decided: the first in any case, the others while nothing comes up."""

    __slots__ = ("durations", "ends", "num_before", "num_priced")

    def __init__(
        self, before: list[float], durations: list[float], ends: list[float], num_priced: int
    ) -> None:
        """`before` are the instant of the first decision and the ends of the steps under way.

        The step at place i is decided at the i-th of these and of its own ends.
        """
        self.num_before = len(before)
        self.ends = before + ends
        self.durations = durations
        self.num_priced = num_priced
        """Decodes that the cost model is asked for, padding included."""

    @property
    def last_decided_at_s(self) -> float:
        """When the last step is decided."""
        return self.ends[len(self.durations) - 1]

    def cut(self, until_s: float) -> None:
        """Drop the steps, but for the first, that would be decided at `until_s` or later."""
        ends, durations = self.ends, self.durations
        num_steps = len(durations)
        if num_steps > 1 and ends[num_steps - 1] >= until_s:
            num_fitting = bisect_left(ends, until_s, 1, num_steps)
            del ends[self.num_before + num_fitting :], durations[num_fitting:]


def group_steps_s(
    cost: CostModel, priced: tuple[int, int, int], num_steps: int, start_s: float
) -> tuple[list[float], list[float]]:
    """Seconds of so many group steps in a row from `start_s`, and when each ends, summed in that order.

    `priced`: decodes, context and longest context of the first. Several at once are for deterministic cost
    models. Raises `PluginError` unless each takes more than 0 seconds and they end.
    """
    if num_steps == 1:
        price_s = cost.decode_s(*priced) if cost.is_deterministic else cost.step_s(StepShape((), 0, *priced))
        duration_s = checked_s(price_s, cost)
        return [duration_s], [start_s + duration_s]
    durations = cost.decodes_s(*priced, num_steps)
    ends = list(accumulate(durations, initial=start_s))
    del ends[0]
    if not (min(durations) > 0.0 and ends[-1] < math.inf):
        for duration_s in durations:
            checked_s(duration_s, cost)
    return durations, ends
