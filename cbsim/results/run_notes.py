"""Run notes: a queue that still grew as arrivals ended, and SLOs that look like milliseconds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from cbsim.base.units import MS_PER_S, format_seconds
from cbsim.results.run_log import Column
from cbsim.results.slo import Slo
from cbsim.workload.request import RequestState

NUM_PARTS = 10
"""Parts of equal length into which the span of arrivals is cut; the queue is averaged over each."""
MIN_WAITING = 10
"""Fewer requests on average in the last part are no backlog."""
MIN_SHARE = 0.05
"""A backlog takes this share of the requests that arrive meanwhile, and of the span to drain."""
MAX_CHANCE = 1.5
"""Standard deviations by which the arrivals' own chance may fill a queue that has room on average."""
LOOSE_S = {"ttft_s": 100.0, "tpot_s": 2.0, "itl_s": 5.0, "e2e_s": 5000.0}
"""Limits from here on are longer than anybody waits; written in milliseconds they would be usual ones."""
LOOSE_RATIO = 10
"""A limit that is at least this many times the median is one that nobody misses."""


def backlog_notes(requests: Mapping[str, Column]) -> list[str]:
    """A sentence where the queue was still growing at the last arrival, for requests of an open loop.

    `requests` are columns of a `RunLog`, by arrival; rejected ones are left out. Work arrives faster than it
    is served where all of this holds of the mean number waiting: the last tenth of the arrivals' span has the
    most of all tenths; what it has more than the middle's is `MIN_SHARE` of the requests that arrived in
    between, and `MAX_CHANCE` standard deviations of their number (the root of the number x the gaps'
    coefficient of variation, as in a renewal process); and after the last arrival the queue takes `MIN_SHARE`
    of the span to drain, or never does.
    """
    served = requests["state"] != RequestState.REJECTED
    arrival_s, start_s = requests["arrival_s"][served], requests["first_scheduled_at_s"][served]
    if len(arrival_s) < MIN_WAITING or arrival_s[-1] <= arrival_s[0]:
        return []
    start_s = np.where(np.isnan(start_s), np.inf, start_s)
    first_s, last_s = float(arrival_s[0]), float(arrival_s[-1])
    span_s = last_s - first_s
    middle_s, half_part_s = first_s + span_s / 2, span_s / NUM_PARTS / 2
    *before, last = [
        mean_waiting(arrival_s, start_s, begin_s, end_s)
        for begin_s, end_s in pairwise(np.linspace(first_s, last_s, NUM_PARTS + 1).tolist())
    ]
    middle = mean_waiting(arrival_s, start_s, middle_s - half_part_s, middle_s + half_part_s)
    num_between = int(((arrival_s > middle_s) & (arrival_s <= last_s - half_part_s)).sum())
    gaps_s = np.diff(arrival_s)
    chance = MAX_CHANCE * math.sqrt(num_between) * float(gaps_s.std() / gaps_s.mean())
    still_grew = (
        last >= max(MIN_WAITING, *before)
        and last - middle >= max(MIN_SHARE * num_between, chance)
        and float(start_s.max()) - last_s >= MIN_SHARE * span_s
    )
    if not still_grew:
        return []
    num_left = int((start_s > last_s).sum())
    return [
        f"the queue still grew as arrivals ended ({num_left:,} waiting): latencies depend on trace length"
    ]


def mean_waiting(arrival_s: Column, start_s: Column, begin_s: float, end_s: float) -> float:
    """Requests that wait between two instants on average: the integral of their number over the time."""
    waited_s = np.minimum(start_s, end_s) - np.maximum(arrival_s, begin_s)
    return float(np.maximum(waited_s, 0).sum()) / (end_s - begin_s)


def limit_notes(slo: Slo | Mapping[str, Any], summary: Mapping[str, Any]) -> list[str]:
    """A sentence for each limit, seconds, that is longer than anybody waits and than what was measured.

    `summary` holds the distributions of the latencies, as in `summary.json`. Where a service is so slow that
    such a limit means something, nothing is said.
    """
    notes = []
    promised = Slo.of(slo)
    for key, limit_s in {**promised.own, **promised.of_run}.items():
        name = key.partition(".")[0]
        median_s = summary[name]["p50"]
        if limit_s < LOOSE_S[name] or median_s is None or limit_s < LOOSE_RATIO * median_s:
            continue
        notes.append(
            f"slo.{key} = {limit_s:g} is {limit_s:g} seconds, {limit_s / median_s:,.0f} times the median of "
            f"{format_seconds(median_s)}: {limit_s:g} ms would be {limit_s / MS_PER_S:g}"
        )
    return notes
