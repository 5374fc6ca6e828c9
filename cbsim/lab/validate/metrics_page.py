"""A server's `/metrics`: what vLLM counts and measures, in Prometheus's text form, beside a simulation."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cbsim.base.errors import WorkloadError
from cbsim.base.text_files import read_text
from cbsim.base.units import MIB
from cbsim.lab.validate.recorded_run import PERCENTILES, error_pct
from cbsim.results.metrics import QUANTILES, distributions, request_latencies
from cbsim.results.run_log import Column, RunLog

LINE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+-?\d+)?\s*")
BOUND = re.compile(r'(?:^|,)\s*le="([^"]+)"')
HISTOGRAMS = {
    "ttft_s": ("vllm:time_to_first_token_seconds",),
    "tpot_s": ("vllm:request_time_per_output_token_seconds",),
    "itl_s": ("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"),
    "e2e_s": ("vllm:e2e_request_latency_seconds",),
    "queue_s": ("vllm:request_queue_time_seconds",),
}
"""Latencies, seconds, by vLLM's names of today and before (`time_per_output_token` was every gap)."""
COUNTERS = {
    "requests": "vllm:request_success_total",
    "prompt tokens": "vllm:prompt_tokens_total",
    "output tokens": "vllm:generation_tokens_total",
    "preemptions": "vllm:num_preemptions_total",
    "prefix-cache hits, tokens": "vllm:prefix_cache_hits_total",
}
MAX_BYTES = 100 * MIB


class Histogram(NamedTuple):
    """What a server measured of a latency: bounds of buckets, seconds, and how many values lie below each."""

    bounds: Column
    num_below: Column
    total: float

    @property
    def number(self) -> float:
        """How many values there were."""
        return float(self.num_below[-1])

    def bucket(self, quantile: float) -> tuple[float, float]:
        """The bounds between which a quantile lies."""
        place = int(np.searchsorted(self.num_below, quantile * self.number))
        place = min(place, len(self.bounds) - 1)
        return (float(self.bounds[place - 1]) if place else 0.0), float(self.bounds[place])


@dataclass(frozen=True, slots=True)
class MetricsPage:
    """The figures of a page, summed over engines and other labels."""

    path: Path
    values: Mapping[str, float]
    """Counters, and `_sum` of histograms."""
    buckets: Mapping[str, Mapping[float, float]] = field(default_factory=dict)

    def since(self, earlier: MetricsPage) -> MetricsPage:
        """What came after another page of the same server. Raises `WorkloadError` if it counts more."""
        values = {name: value - earlier.values.get(name, 0.0) for name, value in self.values.items()}
        buckets = {
            name: {bound: n - earlier.buckets.get(name, {}).get(bound, 0.0) for bound, n in counts.items()}
            for name, counts in self.buckets.items()
        }
        for name, value in values.items():
            if name.endswith("_total") and value < 0:
                raise WorkloadError(
                    f"{self.path}: {name}: got {self.values[name]:g}, less than {earlier.values[name]:g} in "
                    f"{earlier.path}; allowed: pages of one server that ran on, the later one as --log"
                )
        page = MetricsPage(self.path, values, buckets)
        page.check()
        return page

    def check(self) -> None:
        """Raise `WorkloadError` for each figure, of those looked at, that nobody can have counted."""
        problems = []
        for name in (name for several in HISTOGRAMS.values() for name in several):
            counts = [0.0, *(number for _, number in sorted(self.buckets.get(name, {}).items()))]
            if not (np.diff(counts) >= 0).all() or counts[-1] == math.inf:
                problems.append(f"{name}_bucket: got {counts[1:]}; allowed: counts that rise with `le`")
            if counts[-1] > 0 and f"{name}_sum" not in self.values:
                problems.append(f"{name}_sum: missing beside {name}_bucket; allowed: a page as it was served")
        sums = (f"{name}_sum" for name in self.buckets)
        for name in (name for name in (*sums, *COUNTERS.values()) if name in self.values):
            if not 0 <= self.values[name] < math.inf:
                problems.append(f"{name}: got {self.values[name]:g}; allowed: numbers from 0 up")
        if problems:
            raise WorkloadError(*(f"{self.path}: {problem}" for problem in problems))

    def histogram(self, latency: str) -> Histogram | None:
        """What it says of a latency, a key of `HISTOGRAMS`; `None` where nothing was measured."""
        for name in HISTOGRAMS[latency]:
            counts = self.buckets.get(name)
            if counts and max(counts.values()) > 0:
                bounds = np.array(sorted(counts))
                below = np.array([counts[bound] for bound in bounds])
                return Histogram(bounds, below, self.values[f"{name}_sum"])
        return None


def is_metrics_page(path: Path) -> bool:
    """Whether a file looks like Prometheus's text with figures of vLLM."""
    try:
        with path.open("rb") as file:
            head = file.read(200_000)
    except OSError:
        return False
    return head.lstrip().startswith((b"# HELP", b"# TYPE", b"vllm:")) and b"vllm:" in head


def read_metrics_page(path: Path) -> MetricsPage:
    """Reads a page. Raises `WorkloadError` naming the line that is no figure."""
    lines = read_text(path, WorkloadError, MAX_BYTES).splitlines()
    values: dict[str, float] = defaultdict(float)
    buckets: dict[str, dict[float, float]] = defaultdict(lambda: defaultdict(float))
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        found = LINE.fullmatch(line)
        try:
            if found is None:
                raise ValueError
            name, labels, value = found[1], found[2] or "", float(found[3])
            bound = BOUND.search(labels)
            if name.endswith("_bucket") and bound is not None:
                buckets[name.removesuffix("_bucket")][float(bound[1])] += value
            else:
                values[name] += value
        except ValueError:
            got = line if len(line) <= 60 else f"{line[:57]}..."
            raise WorkloadError(f"{path}:{number}: got {got}; allowed: NAME{{LABELS}} NUMBER") from None
    if not any(name.startswith("vllm:") for name in (*values, *buckets)):
        raise WorkloadError(f"{path}: got no figure of vLLM; allowed: its /metrics (vllm:...)")
    page = MetricsPage(path, dict(values), {name: dict(counts) for name, counts in buckets.items()})
    page.check()
    return page


class MeasuredFigure(NamedTuple):
    """A figure of the server beside the simulation's: a mean or a count."""

    name: str
    recorded: float
    simulated: float

    @property
    def error_pct(self) -> float:
        """See `recorded_run.error_pct`."""
        return error_pct(self.simulated, self.recorded)


class QuantileFigure(NamedTuple):
    """A quantile, which a server knows by the bounds of a bucket, seconds."""

    name: str
    low: float
    high: float
    simulated: float

    @property
    def is_within(self) -> bool:
        """Whether the simulation's lies in the bucket."""
        return self.low <= self.simulated <= self.high


def beside(page: MetricsPage, log: RunLog) -> tuple[list[MeasuredFigure], list[QuantileFigure]]:
    """Means and counts, and quantiles, that a server's page and a simulation both have."""
    means, quantiles = [], []
    for name, simulated in distributions(log, request_latencies(log)).items():
        histogram = page.histogram(name)
        if histogram is None or simulated["mean"] is None:
            continue
        mean = histogram.total / histogram.number
        means.append(MeasuredFigure(f"{name}.mean", mean, simulated["mean"]))
        for part in PERCENTILES:
            found = simulated[part]
            assert found is not None
            quantiles.append(QuantileFigure(f"{name}.{part}", *histogram.bucket(QUANTILES[part]), found))
    requests = log.requests
    is_first = requests["num_generated_tokens"] > 0
    counted = {
        "requests": float((~np.isnan(requests["finished_at_s"])).sum()),
        "prompt tokens": float(requests["num_prompt_tokens"][is_first].sum()),
        "output tokens": float(requests["num_generated_tokens"].sum()),
        "preemptions": float(requests["num_preemptions"].sum()),
        "prefix-cache hits, tokens": float(log.num_prompt_tokens_hit),
    }
    counts = [
        MeasuredFigure(name, page.values[metric], counted[name])
        for name, metric in COUNTERS.items()
        if metric in page.values
    ]
    return [*means, *counts], quantiles
