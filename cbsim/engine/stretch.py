"""Stretch: group steps one behind the other, decided at once. What they cost and how far they reach."""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate, islice

from cbsim.cost.base import CostModel, StepShape
from cbsim.engine.base import checked_s


class Stretch:
    """Steps of the decode group, decided: the first in any case, the others while nothing comes up."""

    __slots__ = ("context", "durations", "ends", "needs", "num_priced")

    def __init__(
        self, ends: list[float], durations: list[float], context: int, num_priced: int, needs: list[int]
    ) -> None:
        """`ends` comes with the instant of the first decision and the ends of the steps under way.

        The step at place i is decided at `ends[i]`. Ends are summed in order, as the reference engine does.
        """
        ends += islice(accumulate(durations, initial=ends[-1]), 1, None)
        self.ends = ends
        self.durations = durations
        self.context = context
        """Tokens that the members attend to in the first step."""
        self.num_priced = num_priced
        """Decodes that the cost model is asked for, padding included."""
        self.needs = needs
        """Blocks that each step takes, over and over."""

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
            del ends[len(ends) - num_steps + num_fitting :], durations[num_fitting:]


def group_steps_s(cost: CostModel, priced: tuple[int, int, int], num_steps: int) -> list[float]:
    """Seconds of so many group steps in a row; `priced`: decodes, context, longest context of the first."""
    if not cost.is_deterministic:
        return [checked_s(cost.step_s(StepShape((), 0, *priced)), cost) for _ in range(num_steps)]
    if num_steps == 1:
        return [checked_s(cost.decode_s(*priced), cost)]
    durations = cost.decodes_s(*priced, num_steps)
    checked_s(min(durations), cost)
    checked_s(max(durations), cost)
    return durations


def num_taken(num_steps: int, num_decodes: int, needs: list[int]) -> int:
    """KV blocks that so many group steps take; over one round of `needs` every decode takes one."""
    num_rounds, rest = divmod(num_steps, len(needs))
    return num_rounds * num_decodes + sum(needs[:rest])


def num_affordable(num_steps: int, num_decodes: int, needs: list[int], num_free: int) -> int:
    """How many of so many group steps find their blocks among `num_free`."""
    if not needs or num_decodes * (num_steps // len(needs) + 1) <= num_free:
        return num_steps
    num_rounds = min(num_free // num_decodes, num_steps // len(needs))
    affordable = num_rounds * len(needs)
    num_free -= num_rounds * num_decodes
    for num_needed in needs:
        num_free -= num_needed
        if num_free < 0 or affordable == num_steps:
            break
        affordable += 1
    return affordable
