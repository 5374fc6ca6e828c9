"""A sweep in words: its best point, by how much, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cbsim.intervals import Interval, t_interval
from cbsim.replicates import HIGH, LOW, NUM_REPLICATES, SEED, across_replicates, swept_columns
from cbsim.report.capacity_text import describe_slo
from cbsim.report.differences import format_interval
from cbsim.report.figures import ATTAINMENT, GOODPUT, ITL, THROUGHPUT, TPOT, TTFT, PicturedFigure
from cbsim.report.text import MISSING, Table, format_figure

if TYPE_CHECKING:
    import pandas as pd

_DECIDING = (GOODPUT, ATTAINMENT, THROUGHPUT, TTFT, TPOT, ITL)


@dataclass(frozen=True, slots=True)
class Sweep:
    """A sweep's table, and the same with a row a point whatever its seed."""

    table: pd.DataFrame
    points: pd.DataFrame
    """As `cbsim.replicates.across_replicates` makes it."""
    keys: Sequence[str]
    """The swept settings, seeds apart."""
    slo: Mapping[str, float]

    @classmethod
    def of(cls, table: pd.DataFrame, slo: Mapping[str, float], is_resampled: bool = False) -> Sweep:
        """A sweep from its table and its limits, seconds; `is_resampled` as for `across_replicates`."""
        keys = [key for key in swept_columns(table) if key != SEED]
        return cls(table, across_replicates(table, is_resampled=is_resampled), keys, slo)

    @property
    def ran(self) -> pd.DataFrame:
        """The runs that didn't fail."""
        return self.table[self.table["error"].isna()]

    @property
    def is_replicated(self) -> bool:
        """Whether points have intervals: several runs each, in which chance has changed something."""
        column, _ = self.aim
        varies = self.points[column + HIGH] > self.points[column + LOW]
        return bool(self.points[NUM_REPLICATES].min() > 1 and varies.any())

    @property
    def aim(self) -> tuple[str, str]:
        """The figure that makes a point the best, and what it is called."""
        if self.slo:
            return "goodput_per_s", f"goodput, %s requests/s within {describe_slo(self.slo)}"
        return "output_token_throughput_per_s", "throughput, %s output tokens/s"

    def records(self) -> list[dict[str, Any]]:
        """The points as mappings, `None` for what is missing."""
        plain = self.points.astype(object).where(self.points.notna(), None)
        return [{str(key): value for key, value in row.items()} for row in plain.to_dict("records")]


def sentence(sweep: Sweep) -> str:
    """The best point with its interval, and which others can't be told from it."""
    column, aim = sweep.aim
    records = [row for row in sweep.records() if row[column] is not None]
    if not records:
        return "No point has anything to measure."
    ranked = sorted(records, key=lambda row: -row[column])
    best = ranked[0]
    figure = format_figure(float(best[column]))
    if sweep.is_replicated:
        figure = format_interval(Interval(best[column], best[column + LOW], best[column + HIGH]))
    told = f"{_code_name(best, sweep.keys)} has the highest {aim % figure}"
    if len(ranked) == 1:
        return f"{told}."
    if not sweep.is_replicated:
        runner_up = (
            f"{_code_name(ranked[1], sweep.keys)} follows with {format_figure(float(ranked[1][column]))}"
        )
        return f"{told}; {runner_up}. Nothing was drawn anew, which leaves open how much of that is chance."
    close = [row for row in ranked[1:] if not _is_clear(sweep, best, row, column)]
    if not close:
        return f"{told}, clear of every other point."
    names = ", ".join(_code_name(row, sweep.keys) for row in close[:3])
    more = f" and {len(close) - 3} more" if len(close) > 3 else ""
    return f"{told}; {names}{more} can't be told from it by these replicates."


def replicate_table(sweep: Sweep) -> Table:
    """A row a point: the figures that decide, each with the half-width of its interval."""
    rows = []
    for row in sweep.records():
        cells = [_with_interval(row, figure) for figure in _DECIDING]
        rows.append((point_name(row, sweep.keys), str(row[NUM_REPLICATES]), *cells))
    header = ("", "replicates", *(figure.label for figure in _DECIDING))
    failed = sweep.table["error"].dropna().tolist()
    return Table(header, tuple(rows), notes=(*(f"failed: {error}" for error in failed), sentence(sweep)))


def _with_interval(row: Mapping[str, Any], figure: PicturedFigure) -> str:
    bounds = [row[figure.column + end] for end in ("", LOW, HIGH)]
    if None in bounds:
        return MISSING
    return format_interval(Interval(*(bound * figure.scale for bound in bounds)))


def point_name(row: Mapping[str, Any], keys: Sequence[str]) -> str:
    """`max_tokens_per_step 1024, chunk_size 128`; a single key's value alone if it is a word."""
    if len(keys) == 1 and isinstance(row[keys[0]], str):
        return str(row[keys[0]])
    return ", ".join(f"{key.rpartition('.')[2]} {row[key]}" for key in keys) or "the experiment"


def _code_name(row: Mapping[str, Any], keys: Sequence[str]) -> str:
    if len(keys) == 1 and isinstance(row[keys[0]], str):
        return f"`{row[keys[0]]}`"
    return " with ".join(f"`{key.rpartition('.')[2]}` {row[key]}" for key in keys) or "the experiment"


def _is_clear(sweep: Sweep, best: Mapping[str, Any], other: Mapping[str, Any], column: str) -> bool:
    """Whether the paired differences over the seeds, the same for both, leave out none."""
    first, second = (_by_seed(sweep, row, column) for row in (best, other))
    seeds = [seed for seed in first if seed in second]
    return len(seeds) > 1 and t_interval([first[seed] - second[seed] for seed in seeds]).low > 0


def _by_seed(sweep: Sweep, row: Mapping[str, Any], column: str) -> dict[Any, float]:
    runs = sweep.ran
    for key in sweep.keys:
        runs = runs[runs[key] == row[key]]
    return dict(zip(runs[SEED], runs[column], strict=True))
