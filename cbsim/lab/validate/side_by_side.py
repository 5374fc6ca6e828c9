"""Side by side: the figures of two worlds, and how far the second is from the first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cbsim.results.quantiles import weighted_quantiles
from cbsim.results.run_log import Column
from cbsim.show.text import MISSING, Table, format_figure

TITLES = {"ttft_s": "TTFT", "tpot_s": "TPOT", "itl_s": "ITL", "e2e_s": "E2E"}
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
STATISTICS = ("mean", *QUANTILES)
RATES = ("request_throughput_per_s", "output_token_throughput_per_s")
NAMES = (*(f"{latency}.{statistic}" for latency in TITLES for statistic in STATISTICS), *RATES)
"""Of the figures that are compared: seconds, and rates a second."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of both worlds."""

    name: str
    """Of `NAMES`."""
    real: float
    simulated: float

    @property
    def error_pct(self) -> float:
        """How far the simulation is off, percent; NaN where the real figure is 0."""
        return 100.0 * (self.simulated / self.real - 1.0) if self.real else float("nan")


def side_by_side(real: Mapping[str, float | None], simulated: Mapping[str, float | None]) -> list[Figure]:
    """The figures that both worlds have."""
    pairs = ((name, real.get(name), simulated.get(name)) for name in NAMES)
    return [Figure(name, one, other) for name, one, other in pairs if one is not None and other is not None]


def statistics(name: str, values: Column, counts: Column | None = None) -> dict[str, float]:
    """The figures of a latency whose values occur `counts` times each, once by default; none of no value."""
    known = ~np.isnan(values)
    values = values[known]
    counts = np.ones(len(values), dtype=np.int64) if counts is None else counts[known]
    if not len(values):
        return {}
    quantiles = weighted_quantiles([(values, counts)], np.array(list(QUANTILES.values())))
    figures = (float((values * counts).sum() / counts.sum()), *quantiles.tolist())
    return {f"{name}.{statistic}": figure for statistic, figure in zip(STATISTICS, figures, strict=True)}


def rates(num_requests: int, num_output_tokens: int, makespan_s: float) -> dict[str, float]:
    """What was served a second, from the first arrival to the last token."""
    if makespan_s <= 0:
        return {}
    return dict(zip(RATES, (num_requests / makespan_s, num_output_tokens / makespan_s), strict=True))


def figures_table(figures: list[Figure], real: str, simulated: str, title: str) -> Table:
    """One row a figure: both worlds, and the simulation's error."""
    rows = []
    for figure in figures:
        name, _, statistic = figure.name.partition(".")
        shown = f"{TITLES[name]} {statistic} (s)" if name in TITLES else name.replace("_", " ")
        error = MISSING if np.isnan(figure.error_pct) else f"{figure.error_pct:+.1f}%"
        rows.append((shown, format_figure(figure.real), format_figure(figure.simulated), error))
    return Table(header=("", real, simulated, "error"), rows=tuple(rows), title=title)
