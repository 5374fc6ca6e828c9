"""Mean parts of latencies: over all requests, and over the slowest of them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from cbsim.results.latency.parts import PARTS, TTFT_PARTS
from cbsim.results.run_log import Column

TAIL = 0.01
"""The share of requests that are the slowest."""
Means = dict[str, dict[str, dict[str, float | None]]]


def mean_parts(latencies: Mapping[str, Column], parts: Mapping[str, Column]) -> Means:
    """`{"ttft_s": {"mean": {"queue_s": ...}, "slowest": ...}, "e2e_s": ...}`: seconds by part.

    `mean` is over the requests that have the latency, `slowest` over the slowest hundredth of them, rounded
    up; `None` where there are none. `latencies` has `ttft_s` and `e2e_s`.
    """
    return {
        latency: _means(latencies[latency], {name: parts[column] for name, column in names.items()})
        for latency, names in (("ttft_s", TTFT_PARTS), ("e2e_s", PARTS))
    }


def slowest(latency_s: Column, share: float = TAIL) -> Column:
    """The rows of the slowest requests, a share rounded up, the slowest first and equals by arrival."""
    has = np.flatnonzero(~np.isnan(latency_s))
    order = np.argsort(-latency_s[has], kind="stable")
    # 0.01 is a little more than a hundredth.
    return has[order[: math.ceil(round(share * len(has), 6))]]


def _means(latency_s: Column, parts: Mapping[str, Column]) -> dict[str, dict[str, float | None]]:
    has, tail = np.flatnonzero(~np.isnan(latency_s)), slowest(latency_s)
    return {
        group: {f"{name}_s": float(part[rows].mean()) if len(rows) else None for name, part in parts.items()}
        for group, rows in (("mean", has), ("slowest", tail))
    }
