"""Intervals: how sure a figure is, from independent replicates, or from the blocks of one run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd


CONFIDENCE = 0.95
MIN_REPLICATES = 3
"""Of two, Student's t interval is 13 standard deviations either way: what they saw is told instead."""
SAME = 0.005
"""Figures nearer to each other than this share of the better one are taken for the same."""
NUM_BLOCKS = 20
"""Blocks that a run is cut into (Schmeiser, Operations Research 30(3), 1982: 10 to 30 batches do)."""
NUM_RESAMPLES = 1000
MAX_DRAWN = 200_000_000
"""Values weighed over all resamples; longer runs are resampled less often, at least `MIN_RESAMPLES` times."""
MIN_RESAMPLES = 200

Values = NDArray[Any]


class Interval(NamedTuple):
    """An estimate and the confidence interval round it, all in the unit of the values."""

    estimate: float
    low: float
    high: float

    @classmethod
    def around(cls, estimate: float, half_width: float) -> Interval:
        """An interval as wide on either side."""
        return cls(estimate, estimate - half_width, estimate + half_width)

    def scaled(self, factor: float) -> Interval:
        """In another unit."""
        return Interval(*(factor * bound for bound in self))

    @property
    def half_width(self) -> float:
        """Half of the interval, the `0.3` of `11.8 ± 0.3`."""
        return (self.high - self.low) / 2


def t_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """The mean of independent replicates and Student's t interval round it (Law, Simulation Modeling, 9.4.1).

    A percentile of each replicate is such a value too: the interval is then that of the percentile a run of
    this length is expected to have. Of one value, the interval is without bounds.
    """
    return Interval.around(fmean(values), _spread(values, confidence) / math.sqrt(len(values)))


def bootstrap_interval(
    values: Sequence[float], size_ratio: float = 1.0, confidence: float = CONFIDENCE
) -> Interval:
    """The mean over bootstrap replicates and the interval that the sampled data themselves leave open.

    The standard deviation over replicates estimates the standard error of the figure (Efron and Tibshirani,
    An Introduction to the Bootstrap, 1993, ch. 6), so that more replicates don't make it smaller.
    `size_ratio`, the replicates' size over that of the data, scales it for the m out of n bootstrap.
    """
    return Interval.around(fmean(values), _spread(values, confidence) * math.sqrt(size_ratio))


def seen_range(values: Sequence[float]) -> tuple[float, float] | None:
    """The least and the most of values too few for an interval that is worth telling; `None` of more.

    What is clear of chance the interval says even of two.
    """
    bounds = (min(values), max(values)) if 1 < len(values) < MIN_REPLICATES else None
    return None if bounds is None or bounds[0] == bounds[1] else bounds


def _spread(values: Sequence[float], confidence: float) -> float:
    """The t quantile times the standard deviation; infinite of one value."""
    return t_quantile(confidence, len(values) - 1) * stdev(values) if len(values) > 1 else math.inf


@cache
def t_quantile(confidence: float, degrees_of_freedom: int) -> float:
    """The t that a Student variable stays within with probability `confidence`, both sides."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees_of_freedom, (1 + confidence) / 2))


def block_bootstrap(
    values: Values,
    statistics: Sequence[Callable[[Values, Values], float]],
    random: np.random.Generator,
    confidence: float = CONFIDENCE,
) -> list[Interval]:
    """Each statistic of the values of one run, in order of time, with its interval.

    The circular block bootstrap (Politis and Romano, 1992) draws blocks of neighbours, a twentieth of the run
    each, since requests that follow each other feel the same queue; the interval holds the middle of the
    resampled statistics (percentile method, Efron 1979). A statistic is a function of the sorted values and
    of how often each was drawn, as `mean_of` and `quantile_of` make it. Paired differences are values too.
    """
    order = np.argsort(values, kind="stable")
    ranked = values[order]

    def figures_of(weights: Values) -> list[float]:
        return [statistic(ranked, weights[order]) for statistic in statistics]

    return resampled_intervals(len(values), figures_of, random, confidence)


def resampled_intervals(
    size: int,
    figures_of: Callable[[Values], Sequence[float]],
    random: np.random.Generator,
    confidence: float = CONFIDENCE,
) -> list[Interval]:
    """Figures, functions of how often each value was drawn, with intervals by the same bootstrap."""
    drawn = np.array([figures_of(weights) for weights in block_weights(size, random)])
    tail = (1 - confidence) / 2
    bounds = np.quantile(drawn, [tail, 1 - tail], axis=0).tolist()
    once = np.ones(size, dtype=np.int64)
    return [Interval(*figure) for figure in zip(figures_of(once), *bounds, strict=True)]


def block_weights(size: int, random: np.random.Generator) -> Iterator[Values]:
    """How often each of `size` values is drawn, resample after resample."""
    length = math.ceil(size / NUM_BLOCKS)
    num_blocks = math.ceil(size / length)
    for _ in range(max(MIN_RESAMPLES, min(NUM_RESAMPLES, MAX_DRAWN // size))):
        starts = random.integers(0, size, num_blocks)
        # A block that reaches beyond the end goes on at the beginning.
        steps = np.bincount(starts, minlength=2 * size) - np.bincount(starts + length, minlength=2 * size)
        yield np.cumsum(steps).reshape(2, size).sum(axis=0)


def mean_of(ranked: Values, weights: Values) -> float:
    """The weighted mean."""
    return float(ranked @ weights / weights.sum())


def quantile_of(quantile: float) -> Callable[[Values, Values], float]:
    """The least value that at least this share of the weighted values doesn't exceed."""

    def statistic(ranked: Values, weights: Values) -> float:
        up_to = np.cumsum(weights)
        place = np.searchsorted(up_to, quantile * up_to[-1] * (1 - 1e-12))
        return float(ranked[min(int(place), len(ranked) - 1)])

    return statistic


SEED = "seed"
LOW, HIGH = ".low", ".high"
"""What the names of the columns end in that hold the bounds of a figure's interval."""
NUM_REPLICATES = "num_replicates"
BOOKKEEPING = ("point", "error", "notes", "rejection_reasons")
"""Columns of a sweep's table that are texts about a point."""


def swept_columns(table: pd.DataFrame) -> list[str]:
    """The columns of a sweep's table that say what a point is, in the experiment file's order."""
    columns = [str(name) for name in table.columns]
    return columns[: columns.index("num_requests" if "num_requests" in columns else "point")]


def has_replicates(table: pd.DataFrame) -> bool:
    """Whether a sweep's table has points that only the seed tells apart."""
    swept = swept_columns(table)
    return SEED in swept and bool(table[SEED].nunique() > 1)


def is_known_by_spread(config: Mapping[str, Any]) -> bool:
    """Whether the seeds of an experiment, as resolved, are guesses at one truth.

    A figure is then as unsure as these are spread, however many there are: resamples of one trace, or a cost
    model with errors drawn. Seeds that draw a workload are chances of their own, and their mean grows surer.
    """
    is_resampled = config.get("workload", {}).get("type") == "resampled"
    return is_resampled or bool(config.get("cost_model", {}).get("uncertainty"))


def across_replicates(
    table: pd.DataFrame,
    by: Sequence[str] | None = None,
    confidence: float = CONFIDENCE,
    *,
    by_spread: bool = False,
) -> pd.DataFrame:
    """One row for each point of a sweep's table, whatever its seed: every figure's mean, with its interval.

    Beside each figure of the summary stand `<figure>.low` and `<figure>.high`: the interval over the
    replicates, of percentiles too, by `cbsim.studies.intervals.t_interval`, or with `by_spread`, where
    `is_known_by_spread`, by `bootstrap_interval`; the least and the most of fewer than `MIN_REPLICATES`. `by`
    names the columns that tell points apart, the swept ones by default; `num_replicates` counts the runs,
    failed ones left out. Figures that were not measured in every replicate are missing.
    """
    import pandas as pd

    keys = [name for name in swept_columns(table) if name != SEED] if by is None else list(by)
    ran = table[table["error"].isna()] if "error" in table else table
    figures = [
        str(name)
        for name in ran.columns
        if name not in (*keys, *BOOKKEEPING, SEED)
        and (pd.api.types.is_numeric_dtype(ran[name]) or ran[name].isna().all())
        and not pd.api.types.is_bool_dtype(ran[name])
    ]
    method = bootstrap_interval if by_spread else t_interval
    groups = ran.groupby(keys, sort=False, dropna=False) if keys else [((), ran)]
    rows = []
    for values, replicates in groups:
        row: dict[str, Any] = dict(zip(keys, values, strict=True))
        row[NUM_REPLICATES] = len(replicates)
        for name in figures:
            cells: tuple[float | None, ...] = (None,) * 3
            if not replicates[name].isna().any():
                runs = [*map(float, replicates[name])]
                mean, *bounds = method(runs, confidence=confidence)
                cells = (mean, *(seen_range(runs) or bounds))
            row |= dict(zip((name, name + LOW, name + HIGH), cells, strict=True))
        rows.append(row)
    columns = [f"{name}{end}" for name in figures for end in ("", LOW, HIGH)]
    frame = pd.DataFrame(rows, columns=[*keys, NUM_REPLICATES, *columns])
    return frame.astype(dict.fromkeys(columns, "float64")).copy()
