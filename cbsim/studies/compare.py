"""Compare: what changes for the same requests from one run to another, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from cbsim.base.errors import CbsimError
from cbsim.results.metrics import meets_slo
from cbsim.results.result import Result
from cbsim.studies.intervals import CONFIDENCE, Interval, Values, block_weights, mean_of, quantile_of

if TYPE_CHECKING:
    import pandas as pd

LATENCIES = ("ttft_s", "tpot_s", "max_itl_s", "e2e_s", "queue_s")
"""What is compared of each request, seconds."""
WITHIN_SLO = "slo_attainment"
STATISTICS: dict[str, Callable[[Values, Values], float]] = {
    "mean": mean_of,
    "p50": quantile_of(0.50),
    "p90": quantile_of(0.90),
    "p99": quantile_of(0.99),
}


@dataclass(frozen=True, slots=True)
class Difference:
    """One figure over the requests that both runs measured."""

    figure: str
    """Of `LATENCIES`, or `slo_attainment`."""
    statistic: str
    num_pairs: int
    first: float
    second: float
    change: Interval
    """Second - first."""

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out "no change"."""
        return not self.change.contains(0.0)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs, the requests they share, and what differs."""

    num_pairs: int
    num_only_first: int
    num_only_second: int
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]


def compare(first: Result, second: Result, *, seed: int = 0, confidence: float = CONFIDENCE) -> Comparison:
    """Pair two runs by request and tell, for each latency, how mean, p50, p90 and p99 differ.

    The intervals come from a paired circular block bootstrap (Politis and Romano, 1992; see
    `studies.intervals`): whole blocks of neighbouring requests are drawn, the same for both runs, so that
    what both have in common, as a burst of arrivals, doesn't blur the difference. A latency is compared over
    the requests that have it in both runs; the share within the SLO over all pairs. Raises `CbsimError` if no
    request is in both runs.
    """
    pairs = _Pairs(first, second)
    if not len(pairs.frame):
        raise CbsimError("the runs have no request in common, by request_id")
    columns = pairs.columns()
    random = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
    drawn = np.array([_changes(columns, weights) for weights in block_weights(len(pairs.frame), random)])
    tail = (1 - confidence) / 2
    lows, highs = np.quantile(drawn, [tail, 1 - tail], axis=0).tolist()
    differences = []
    bounds = iter(zip(lows, highs, strict=True))
    for column in columns:
        for name, before, after in column.figures():
            low, high = next(bounds)
            change = Interval(after - before, low, high)
            differences.append(Difference(column.name, name, len(column.first), before, after, change))
    num_pairs = len(pairs.frame)
    return Comparison(
        num_pairs,
        len(first.requests) - num_pairs,
        len(second.requests) - num_pairs,
        tuple(differences),
        tuple(pairs.notes()),
    )


class _Column:
    """A figure of each pair that has it in both runs; `rows` says which, in order of arrival."""

    def __init__(self, name: str, first: Values, second: Values) -> None:
        self.name = name
        self.rows = np.flatnonzero(~(np.isnan(first) | np.isnan(second)))
        self.first, self.second = first[self.rows], second[self.rows]
        self.statistics = {"mean": mean_of} if name == WITHIN_SLO else STATISTICS
        self._orders = [np.argsort(values, kind="stable") for values in (self.first, self.second)]

    @cached_property
    def _ranked(self) -> list[Values]:
        return [values[order] for values, order in zip((self.first, self.second), self._orders, strict=True)]

    def figures(self) -> list[tuple[str, float, float]]:
        """Each statistic of the first and of the second run."""
        once = np.ones(len(self.first))
        first, second = self._ranked
        return [(name, of(first, once), of(second, once)) for name, of in self.statistics.items()]

    def changes(self, weights: Values) -> list[float]:
        """Each statistic's change where pairs were drawn so many times; NaN if none of these was."""
        drawn = weights[self.rows]
        if not drawn.any():
            return [float("nan")] * len(self.statistics)
        (first, second), (before, after) = self._ranked, (drawn[order] for order in self._orders)
        return [statistic(second, after) - statistic(first, before) for statistic in self.statistics.values()]


def _changes(columns: list[_Column], weights: Values) -> list[float]:
    return [change for column in columns for change in column.changes(weights)]


class _Pairs:
    """The requests of both runs, joined by their id, in the first run's order of arrival."""

    def __init__(self, first: Result, second: Result) -> None:
        self._configs = first.config, second.config
        joined = first.requests.merge(second.requests, on="request_id", suffixes=(".first", ".second"))
        self.frame: pd.DataFrame = joined

    def columns(self) -> list[_Column]:
        """The figures that at least one pair has."""
        columns = [_Column(name, *self._both(name)) for name in LATENCIES]
        slo = self._slo()
        if slo:
            columns.append(_Column(WITHIN_SLO, self._within(slo, "first"), self._within(slo, "second")))
        return [column for column in columns if len(column.first)]

    def notes(self) -> list[str]:
        """What a reader of the differences must know."""
        notes = []
        for name, what in (("num_prompt_tokens", "prompts"), ("num_output_tokens", "answers")):
            first, second = self._both(name)
            if num_unequal := int((first != second).sum()):
                notes.append(f"{num_unequal:,} requests have {what} of other lengths in the second run")
        for run, other in (("first", "second"), ("second", "first")):
            finished, there = (self.frame[f"state.{each}"] == "finished" for each in (run, other))
            if num_unmatched := int((finished & ~there).sum()):
                notes.append(f"{num_unmatched:,} requests finished in the {run} run only")
        if self._slo() is None:
            notes.append("the runs have different SLOs, and so no share within it to compare")
        return notes

    def _slo(self) -> dict[str, float] | None:
        """The limits that both runs were given; `None` if they differ."""
        first, second = (_limits(config) for config in self._configs)
        return first if first == second else None

    def _both(self, name: str) -> tuple[Values, Values]:
        first, second = (self.frame[f"{name}.{run}"].to_numpy(np.float64) for run in ("first", "second"))
        return first, second

    def _within(self, slo: Mapping[str, float], run: str) -> Values:
        latencies = {name: self.frame[f"{name}.{run}"].to_numpy(np.float64) for name in LATENCIES}
        finished = (self.frame[f"state.{run}"] == "finished").to_numpy(bool)
        return meets_slo(latencies, finished, slo).astype(np.float64)


def _limits(config: Mapping[str, Any]) -> dict[str, float]:
    return {name: limit for name, limit in (config.get("slo") or {}).items() if limit is not None}
