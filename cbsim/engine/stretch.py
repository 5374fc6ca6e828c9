"""A stretch: group steps one behind the other, decided at once. What they cost and how far they reach."""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate, islice

from cbsim.cost.base import CostModel, StepShape
from cbsim.engine.base import checked_s


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


def append_ends(ends: list[float], durations: list[float], until_s: float) -> None:
    """Append the steps' ends to `ends`, and drop the steps that would be decided at `until_s` or later.

    `ends` begins with the instant at which the first of them is decided, and goes on with the ends of the
    steps under way: the step at place i is decided at `ends[i]`, the first one in any case. Ends are summed
    in order, as the reference engine does.
    """
    num_ahead = len(ends)
    ends += islice(accumulate(durations, initial=ends[-1]), 1, None)
    num_steps = len(durations)
    if num_steps > 1:
        num_fitting = bisect_left(ends, until_s, 1, num_steps)
        if num_fitting < num_steps:
            del durations[num_fitting:], ends[num_ahead + num_fitting :]


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
