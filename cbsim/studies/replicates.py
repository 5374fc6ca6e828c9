"""Replicates: the runs of a table that differ in nothing but the seed, as one row with intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from cbsim.studies.intervals import CONFIDENCE, Interval, bootstrap_interval, t_interval

if TYPE_CHECKING:
    import pandas as pd

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
    `is_known_by_spread`, by `bootstrap_interval`. `by` names the columns that tell points apart, the swept
    ones by default; `num_replicates` counts the runs, failed ones left out. Figures that were not measured in
    every replicate are missing.
    """
    import pandas as pd

    keys = [name for name in swept_columns(table) if name != SEED] if by is None else list(by)
    ran = table[table["error"].isna()] if "error" in table else table
    figures = [
        str(name)
        for name in ran.columns
        if name not in (*keys, *BOOKKEEPING, SEED)
        and (pd.api.types.is_numeric_dtype(ran[name]) or ran[name].isna().all())
    ]
    method = bootstrap_interval if by_spread else t_interval
    groups = ran.groupby(keys, sort=False, dropna=False) if keys else [((), ran)]
    rows = []
    for values, replicates in groups:
        row: dict[str, Any] = dict(zip(keys, values, strict=True))
        row[NUM_REPLICATES] = len(replicates)
        for name in figures:
            row |= _described(name, replicates[name], partial(method, confidence=confidence))
        rows.append(row)
    columns = [f"{name}{end}" for name in figures for end in ("", LOW, HIGH)]
    frame = pd.DataFrame(rows, columns=[*keys, NUM_REPLICATES, *columns])
    return frame.astype(dict.fromkeys(columns, "float64")).copy()


def _described(
    name: str, column: pd.Series[Any], method: Callable[[list[float]], Interval]
) -> dict[str, float | None]:
    if column.isna().any():
        return {name: None, name + LOW: None, name + HIGH: None}
    interval = method([float(value) for value in column])
    return {name: interval.estimate, name + LOW: interval.low, name + HIGH: interval.high}
