"""Counters, gauges and histograms by replica, and Prometheus' text exposition format for them.

https://prometheus.io/docs/instrumenting/exposition_formats/, version 0.0.4.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any, Literal


class Series:
    """A number a replica: a counter, which only grows, or a gauge."""

    def __init__(self, name: str, kind: Literal["counter", "gauge"], meaning: str, num_replicas: int) -> None:
        self.name = name
        self.kind: str = kind
        self.meaning = meaning
        self.values: list[float] = [0] * num_replicas

    def to_plain(self) -> list[float]:
        """The number of each replica."""
        return list(self.values)

    def samples(self, replica: int) -> Iterator[tuple[str, dict[str, str], float]]:
        """`(name, further labels, value)` of each line of the text."""
        yield self.name, {}, self.values[replica]


class Histogram:
    """How many observations are at most as large as each bound, and their sum, for each replica."""

    kind = "histogram"

    def __init__(self, name: str, meaning: str, bounds: Sequence[float], num_replicas: int) -> None:
        """`bounds` rise; the last bucket, of infinity, is added to them."""
        self.name = name
        self.meaning = meaning
        self.bounds = tuple(bounds)
        self.counts = [[0] * (len(self.bounds) + 1) for _ in range(num_replicas)]
        """Of each replica and bucket; a bucket holds what is above the bound before its own."""
        self.sums = [0.0] * num_replicas

    def observe(self, replica: int, value: float, times: int = 1) -> None:
        """Count an observation, or several equal ones."""
        self.counts[replica][bisect_left(self.bounds, value)] += times
        self.sums[replica] += value * times

    def to_plain(self) -> list[dict[str, Any]]:
        """Of each replica: `bounds`, `counts` (one more, for what is above), `sum` and `count`."""
        return [
            {"bounds": list(self.bounds), "counts": list(counts), "sum": total, "count": sum(counts)}
            for counts, total in zip(self.counts, self.sums, strict=True)
        ]

    def samples(self, replica: int) -> Iterator[tuple[str, dict[str, str], float]]:
        """See `Series.samples`; the text's buckets are cumulative."""
        counts = self.counts[replica]
        for bound, up_to in zip((*self.bounds, math.inf), accumulate(counts), strict=True):
            yield f"{self.name}_bucket", {"le": _number(bound)}, up_to
        yield f"{self.name}_sum", {}, self.sums[replica]
        yield f"{self.name}_count", {}, sum(counts)


Metric = Series | Histogram


def exposition(metrics: Iterable[Metric], labels: Sequence[dict[str, str]]) -> str:
    """The text that a Prometheus server reads; `labels` are those of each replica."""
    lines = []
    for metric in metrics:
        lines.append(f"# HELP {metric.name} {metric.meaning}")
        lines.append(f"# TYPE {metric.name} {metric.kind}")
        for replica, own in enumerate(labels):
            for name, further, value in metric.samples(replica):
                pairs = ",".join(f'{key}="{_escaped(text)}"' for key, text in {**own, **further}.items())
                lines.append(f"{name}{{{pairs}}} {_number(value)}")
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    if value == math.inf:
        return "+Inf"
    return str(value) if isinstance(value, int) else repr(value)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
