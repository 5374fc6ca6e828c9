"""A trace's clock: arrivals that look like milliseconds, or like seconds since 1970."""

from __future__ import annotations

import math

import numpy as np

from cbsim.base.units import MS_PER_S
from cbsim.workload.request_batch import FloatColumn

EPOCH_S = 1e9
"""Seconds from 1970 to 2001: no trace runs for so long, and every date since is later."""
_NUM_TOLD = 20
"""Fewer arrivals tell too little about their unit."""
_SLOW_GAP_S = 20.0
"""Mean seconds between arrivals at which a service would mostly idle; in milliseconds it is a busy one's."""


def clock_notes(file: str, arrival_s: FloatColumn, start_s: float, *, unit_may_slip: bool) -> list[str]:
    """What to think of a trace's arrivals, rising, as they are in the file; time starts at `start_s`.

    `unit_may_slip` says that the file's format doesn't fix their unit but by its word.
    """
    first_s = float(arrival_s[0])
    if first_s - start_s >= EPOCH_S:
        unit, settings = "seconds", f"workload.start_s={math.floor(first_s)}"
        if first_s - start_s >= EPOCH_S * MS_PER_S:
            unit, settings = "milliseconds", f"{settings} and workload.rate_scale={MS_PER_S}"
        return [
            f"{file}: arrivals begin at {first_s:,.0f} s, as {unit} since 1970 would: to start there, set "
            f"{settings}"
        ]
    if unit_may_slip and _looks_like_ms(arrival_s):
        mean_gap_s = float(arrival_s[-1] - arrival_s[0]) / (len(arrival_s) - 1)
        return [
            f"{file}: arrivals are whole numbers, {mean_gap_s:.3g} s apart on average: if they are "
            f"milliseconds, workload.rate_scale={MS_PER_S} makes seconds of them"
        ]
    return []


def _looks_like_ms(arrival_s: FloatColumn) -> bool:
    """Whether all are whole, some no round numbers of seconds, and far between."""
    if len(arrival_s) < _NUM_TOLD or float(arrival_s[-1] - arrival_s[0]) < _SLOW_GAP_S * len(arrival_s):
        return False
    return bool((arrival_s == np.rint(arrival_s)).all()) and bool((arrival_s % 10 != 0).any())
