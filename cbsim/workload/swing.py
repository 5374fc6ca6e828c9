"""Swing: how far the rate of a trace moves from its mean, and a stretch in which it doesn't."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from cbsim.workload.request import FloatColumn

NUM_PARTS = 20
"""Parts of equal length into which the span of the arrivals is cut."""
MIN_IN_PART = 25
"""Arrivals of a part on average; with fewer, chance alone moves the rate widely, and nothing is told."""
WIDE = 1.5
"""A rate swings if its highest part is so many times its mean, or its mean so many times its lowest part."""
STEADY = 0.25
"""Rates of a steady stretch lie within this share of its mean."""
NUM_DEVIATIONS = 3
"""Standard deviations of a Poisson count that are taken for chance."""
MIN_STEADY = 4
"""Parts of a steady stretch at least."""


class Stretch(NamedTuple):
    """Some time of a trace, seconds on its clock, and the mean rate then."""

    start_s: float
    end_s: float
    rate_per_s: float


class Swing(NamedTuple):
    """The rates of the slowest and of the busiest part of a trace, requests a second."""

    low_per_s: float
    high_per_s: float
    steady: Stretch | None
    """The longest stretch in which the rate is steady; `None` where there is none of a fifth of the span."""


def swing_of(arrival_s: FloatColumn) -> Swing | None:
    """How the rate of arrivals, rising, swings; `None` where chance alone does as much, or few came."""
    if len(arrival_s) < MIN_IN_PART * NUM_PARTS or arrival_s[-1] <= arrival_s[0]:
        return None
    counts, edges_s = np.histogram(arrival_s, NUM_PARTS)
    mean, part_s = float(counts.mean()), float(edges_s[1] - edges_s[0])
    chance = NUM_DEVIATIONS * math.sqrt(mean)
    low, high = int(counts.min()), int(counts.max())
    is_wide = high > max(WIDE * mean, mean + chance) or low < min(mean / WIDE, mean - chance)
    if not is_wide:
        return None
    steady = max(
        (
            (last - first, -first)
            for first in range(NUM_PARTS)
            for last in range(first + MIN_STEADY, NUM_PARTS + 1)
            if _is_steady(counts[first:last])
        ),
        default=None,
    )
    stretch = None
    if steady is not None:
        size, first = steady[0], -steady[1]
        rate_per_s = float(counts[first : first + size].mean()) / part_s
        stretch = Stretch(float(edges_s[first]), float(edges_s[first + size]), rate_per_s)
    return Swing(low / part_s, high / part_s, stretch)


def _is_steady(counts: FloatColumn) -> bool:
    mean = float(counts.mean())
    return bool(np.abs(counts - mean).max() <= max(STEADY * mean, NUM_DEVIATIONS * math.sqrt(mean)))
