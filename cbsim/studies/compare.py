"""Compare: what changes for the same requests from one run to another, with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cbsim.base.errors import CbsimError
from cbsim.results.metrics import QUANTILES, meets_slo
from cbsim.results.result import Result
from cbsim.results.slo import Slo
from cbsim.studies.intervals import CONFIDENCE, Interval, Values, mean_of, quantile_of, resampled_intervals
from cbsim.studies.labels import full_text

if TYPE_CHECKING:
    import pandas as pd

LATENCIES = ("ttft_s", "tpot_s", "max_itl_s", "e2e_s", "queue_s")
"""What is compared of each request, seconds."""
WITHIN_SLO = "slo_attainment"
MOST_TOLD = 6
"""Settings that are told at most where two runs differ in more."""
_RUNS = ("first", "second")
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
        """Whether the interval leaves out "no change"; one of too few requests, NaN, does not."""
        return self.change.low > 0.0 or self.change.high < 0.0


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

    So it does of any other percentile that both runs limit.

    The intervals come from a paired circular block bootstrap (Politis and Romano, 1992; see
    `studies.intervals`): whole blocks of neighbouring requests are drawn, the same for both runs, so that
    what both have in common, as a burst of arrivals, doesn't blur the difference. A latency is compared over
    the requests that have it in both runs; the share within the SLO over all pairs. Raises `CbsimError` if no
    request is in both runs.
    """
    pairs = _Pairs(first, second)
    num_pairs = len(pairs.frame)
    if not num_pairs:
        raise CbsimError("the runs have no request in common, by request_id")
    columns = pairs.columns()
    random = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))

    def changes_of(weights: Values) -> list[float]:
        return [after - before for column in columns for _, before, after in column.figures(weights)]

    changes = iter(resampled_intervals(num_pairs, changes_of, random, confidence))
    differences = tuple(
        Difference(column.name, statistic, len(column.rows), before, after, next(changes))
        for column in columns
        for statistic, before, after in column.figures(np.ones(num_pairs))
    )
    only_first, only_second = (len(run.measured) - num_pairs for run in (first, second))
    unlike = list(_unlike(first.config, second.config))
    more = f", and {len(unlike) - MOST_TOLD} more" if len(unlike) > MOST_TOLD else ""
    told = [f"settings that differ: {', '.join(unlike[:MOST_TOLD])}{more}"] if unlike else []
    return Comparison(num_pairs, only_first, only_second, differences, (*told, *pairs.notes()))


def _unlike(first: Mapping[str, Any], second: Mapping[str, Any], within: str = "") -> Iterator[str]:
    """Each setting that two runs have otherwise, with both; of parts of other types or names these alone."""
    for key in dict.fromkeys((*first, *second)):
        one, other = first.get(key), second.get(key)
        if one == other or f"{within}{key}" == "name":
            continue
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            naming = next((name for name in ("type", "name") if one.get(name) != other.get(name)), None)
            if naming is not None:
                one, other = ({naming: part.get(naming)} for part in (one, other))
            yield from _unlike(one, other, f"{within}{key}.")
        else:
            yield f"{within}{key} {full_text(one, [one])} and {full_text(other, [other])}"


class _Column:
    """A figure of each pair that has it in both runs; `rows` says which, in order of arrival."""

    def __init__(self, name: str, values: Sequence[Values], limited: Iterable[str] = ()) -> None:
        self.name = name
        first, second = values
        self.rows = np.flatnonzero(~(np.isnan(first) | np.isnan(second)))
        self._statistics = {"mean": mean_of} if name == WITHIN_SLO else dict(STATISTICS)
        self._statistics |= {each: quantile_of(QUANTILES[each]) for each in limited if each in QUANTILES}
        both = [values[self.rows] for values in (first, second)]
        self._orders = [np.argsort(values, kind="stable") for values in both]
        self._ranked = [values[order] for values, order in zip(both, self._orders, strict=True)]

    def figures(self, weights: Values) -> list[tuple[str, float, float]]:
        """Each statistic of the first and of the second run, pairs drawn as often as `weights` says.

        NaN if none of these pairs was drawn.
        """
        drawn = weights[self.rows]
        if not drawn.any():
            return [(name, math.nan, math.nan) for name in self._statistics]
        (first, second), (once, again) = self._ranked, (drawn[order] for order in self._orders)
        return [(name, of(first, once), of(second, again)) for name, of in self._statistics.items()]


class _Pairs:
    """The requests of both runs, joined by their id, in the first run's order of arrival."""

    def __init__(self, first: Result, second: Result) -> None:
        joined = first.measured.merge(second.measured, on="request_id", suffixes=(".first", ".second"))
        self.frame: pd.DataFrame = joined
        self._slo = first.promised if first.promised == second.promised else None
        """What both runs promise; `None` if they differ."""

    def columns(self) -> list[_Column]:
        """The figures that at least one pair has."""
        slo = self._slo or Slo()
        columns = [_Column(name, self._both(name), slo.limits_on(name)) for name in LATENCIES]
        if slo.own:
            columns.append(_Column(WITHIN_SLO, [self._within(slo.own, run) for run in _RUNS]))
        return [column for column in columns if len(column.rows)]

    def notes(self) -> list[str]:
        """What a reader of the differences must know."""
        notes = []
        for name, what in (("num_prompt_tokens", "prompts"), ("num_output_tokens", "answers")):
            first, second = self._both(name)
            if num_unequal := int((first != second).sum()):
                notes.append(f"{num_unequal:,} requests have {what} of other lengths in the second run")
        for run, other in (_RUNS, _RUNS[::-1]):
            if num_unmatched := int((self._finished(run) & ~self._finished(other)).sum()):
                notes.append(f"{num_unmatched:,} requests finished in the {run} run only")
        if self._slo is None:
            notes.append("the runs have different SLOs, and so no share within it to compare")
        return notes

    def _both(self, name: str) -> list[Values]:
        return [self.frame[f"{name}.{run}"].to_numpy(np.float64) for run in _RUNS]

    def _finished(self, run: str) -> Values:
        return (self.frame[f"state.{run}"] == "finished").to_numpy(bool)

    def _within(self, slo: Mapping[str, float], run: str) -> Values:
        latencies = {name: self.frame[f"{name}.{run}"].to_numpy(np.float64) for name in LATENCIES}
        return meets_slo(latencies, self._finished(run), slo).astype(np.float64)
