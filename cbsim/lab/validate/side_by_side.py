"""Side by side: the figures of two worlds, and how far the second is from the first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cbsim.results.quantiles import weighted_quantiles
from cbsim.results.run_log import Column, RunLog, distinct_gaps
from cbsim.show.text import MISSING, Table, format_figure

TITLES = {"ttft_s": "TTFT", "tpot_s": "TPOT", "itl_s": "ITL", "e2e_s": "E2E"}
STATISTICS = ("mean", "p50", "p90", "p99")
PERCENT = 100.0


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of both worlds."""

    name: str
    """As `ttft_s.mean`; seconds, or a rate a second."""
    real: float
    simulated: float

    @property
    def error_pct(self) -> float:
        """How far the simulation is off, percent; NaN where the real figure is 0."""
        return PERCENT * (self.simulated / self.real - 1.0) if self.real else float("nan")


def statistics(values: Column, counts: Column | None = None) -> dict[str, float]:
    """Mean, p50, p90 and p99 of values, each occurring so many times; of none, nothing."""
    known = ~np.isnan(values)
    values = values[known]
    counts = np.ones(len(values), dtype=np.int64) if counts is None else counts[known]
    if not len(values):
        return {}
    quantiles = weighted_quantiles([(values, counts)], np.array([0.5, 0.9, 0.99]))
    mean = float((values * counts).sum() / counts.sum())
    return dict(zip(STATISTICS, (mean, *quantiles.tolist()), strict=True))


def latency_figures(
    real: Mapping[str, dict[str, float]], simulated: Mapping[str, dict[str, float]]
) -> list[Figure]:
    """Each latency's statistics, where both worlds have them."""
    return [
        Figure(f"{name}.{statistic}", real[name][statistic], simulated[name][statistic])
        for name in TITLES
        if name in real and name in simulated
        for statistic in STATISTICS
        if statistic in real[name] and statistic in simulated[name]
    ]


def throughput_figures(real: Mapping[str, float], simulated: Mapping[str, float]) -> list[Figure]:
    """Rates a second."""
    return [Figure(name, real[name], simulated[name]) for name in real if name in simulated]


def rates(num_requests: int, num_output_tokens: int, makespan_s: float) -> dict[str, float]:
    """What was served a second, from the first arrival to the last token."""
    if makespan_s <= 0:
        return {}
    return {
        "request_throughput_per_s": num_requests / makespan_s,
        "output_token_throughput_per_s": num_output_tokens / makespan_s,
    }


def log_statistics(log: RunLog) -> dict[str, dict[str, float]]:
    """The latencies of a run, live or simulated."""
    from cbsim.results.metrics import request_latencies

    latencies = request_latencies(log)
    found = {name: statistics(latencies[name]) for name in ("ttft_s", "tpot_s", "e2e_s")}
    return found | {"itl_s": statistics(*distinct_gaps(log.gaps))}


def figures_table(figures: list[Figure], real: str, simulated: str, title: str) -> Table:
    """One row a figure: both worlds, and the simulation's error."""
    rows = []
    for figure in figures:
        name, _, statistic = figure.name.partition(".")
        shown = f"{TITLES[name]} {statistic} (s)" if name in TITLES else name.replace("_", " ")
        error = MISSING if np.isnan(figure.error_pct) else f"{figure.error_pct:+.1f}%"
        rows.append((shown, format_figure(figure.real), format_figure(figure.simulated), error))
    return Table(header=("", real, simulated, "error"), rows=tuple(rows), title=title)
