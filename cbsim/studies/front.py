"""Front: which of many points no other beats in both of two figures."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbsim.studies.intervals import SAME

Values = NDArray[Any]


def pareto_front(gain: Values, cost: Values) -> Values:
    """Which points have more gain than every point that costs no more: the indices, by rising cost."""
    order = np.lexsort((-gain, cost))
    best = np.maximum.accumulate(np.concatenate([[-np.inf], gain[order][:-1]]))
    front: Values = order[gain[order] > best]
    return front


def distinct_front(gain: Values, cost: Values) -> list[list[int]]:
    """The front by rising cost, points that are the same to within `SAME` as one: the indices of each.

    The first of each stands for it. Who gains no more than `SAME` for a higher cost is no point of its own,
    nor is who costs no more than `SAME` less for a lower gain.
    """
    groups: list[list[int]] = []
    for place in pareto_front(gain, cost).tolist():
        last = groups[-1][0] if groups else place
        if not groups:
            groups.append([place])
        elif gain[place] <= gain[last] * (1 + SAME):
            groups[-1].append(place)
        elif cost[place] <= cost[last] * (1 + SAME):
            groups[-1] = [place]
        else:
            groups.append([place])
    return groups
