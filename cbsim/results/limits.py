"""Limits: SLOs that look like milliseconds, told from what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cbsim.base.units import MS_PER_S, format_seconds

LOOSE_S = {"ttft_s": 100.0, "tpot_s": 2.0, "itl_s": 5.0, "e2e_s": 5000.0}
"""Limits from here on are longer than anybody waits; written in milliseconds they would be usual ones."""
LOOSE_RATIO = 10
"""A limit that is at least this many times the median is one that nobody misses."""


def limit_notes(slo: Mapping[str, float], summary: Mapping[str, Any]) -> list[str]:
    """A sentence for each limit, seconds, that is longer than anybody waits and than what was measured.

    `summary` holds the distributions of the latencies, as in `summary.json`. Where a service is so slow that
    such a limit means something, nothing is said.
    """
    notes = []
    for name, limit_s in slo.items():
        median_s = summary[name]["p50"]
        if limit_s < LOOSE_S[name] or median_s is None or limit_s < LOOSE_RATIO * median_s:
            continue
        notes.append(
            f"slo.{name} = {limit_s:g} is {limit_s:g} seconds, {limit_s / median_s:,.0f} times the median of "
            f"{format_seconds(median_s)}: {limit_s:g} ms would be {limit_s / MS_PER_S:g}"
        )
    return notes
