"""PercentileBin: requests between two percentiles of a latency, and the mean parts of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cbsim.results.latency import PARTS, TTFT_PARTS

if TYPE_CHECKING:
    import pandas as pd

PERCENTILES = (0, 50, 90, 95, 99, 100)
COLUMNS: dict[str, Mapping[str, str]] = {"ttft_s": TTFT_PARTS, "e2e_s": PARTS}
"""Latency -> name of a part -> its column in `requests`."""


class PercentileBin(NamedTuple):
    """Some of the requests sorted by a latency."""

    low: int
    high: int
    """Percentiles: the slowest hundredth is from 99 to 100."""
    num_requests: int
    parts_s: dict[str, float]
    """Mean of each part over them, seconds."""

    @property
    def total_s(self) -> float:
        """Their mean latency."""
        return sum(self.parts_s.values())


def percentile_bins(requests: pd.DataFrame, latency: str) -> list[PercentileBin]:
    """The bins between `PERCENTILES` that hold requests, of those that have the latency (`ttft_s`, `e2e_s`).

    Of equal latencies the earlier row comes first. A boundary between two requests goes to the slower bin, so
    that the slowest hundredth of 1,000 is ten requests.
    """
    measured = requests[requests[latency].notna()].sort_values(latency, kind="stable")
    edges = np.floor(np.array(PERCENTILES) * len(measured) / 100).astype(int)
    bins = []
    for low, high, first, end in zip(PERCENTILES, PERCENTILES[1:], edges, edges[1:], strict=False):
        if end > first:
            means = measured.iloc[first:end][list(COLUMNS[latency].values())].mean()
            parts_s = {name: float(means[column]) for name, column in COLUMNS[latency].items()}
            bins.append(PercentileBin(low, high, int(end - first), parts_s))
    return bins
