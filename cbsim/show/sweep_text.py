"""A sweep with a row a point, and in words: its best point, by how much, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cbsim.base.errors import CbsimError
from cbsim.results.table_file import first_line
from cbsim.show.capacity_text import describe_slo
from cbsim.show.reader_tables import (
    ATTAINMENT,
    COMPARED,
    GOODPUT,
    ITL,
    MBU,
    MFU,
    SAME,
    THROUGHPUT,
    TPOT,
    TTFT,
    SummaryFigure,
    records,
)
from cbsim.show.text import MISSING, Table, format_figure, format_interval
from cbsim.studies.intervals import (
    BOOKKEEPING,
    HIGH,
    LOW,
    NUM_REPLICATES,
    SEED,
    Interval,
    across_replicates,
    bootstrap_interval,
    swept_columns,
    t_interval,
)
from cbsim.studies.labels import is_word, plain_text, point_name, short_keys

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class Sweep:
    """A sweep's table, and the same with a row a point whatever its seed."""

    table: pd.DataFrame
    points: pd.DataFrame
    """As `cbsim.studies.intervals.across_replicates` makes it."""
    keys: Sequence[str]
    """The swept settings, seeds apart."""
    slo: Mapping[str, float]
    by_spread: bool = False
    """As for `cbsim.studies.intervals.across_replicates`."""

    @classmethod
    def of(cls, table: pd.DataFrame, slo: Mapping[str, float], by_spread: bool = False) -> Sweep:
        """A sweep from its table and its limits, seconds."""
        keys = [key for key in swept_columns(table) if key != SEED]
        points = across_replicates(table, by_spread=by_spread)
        return cls(table, points, keys, slo, by_spread)

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

    @property
    def num_determined(self) -> int:
        """Points of several runs that are the same in every figure: nothing in them was drawn."""
        figures = [name.removesuffix(HIGH) for name in self.points.columns if name.endswith(HIGH)]
        low, high = (self.points[[name + end for name in figures]].to_numpy() for end in (LOW, HIGH))
        is_same = ((low == high) | self.points[figures].isna().to_numpy()).all(axis=1)
        return int((is_same & (self.points[NUM_REPLICATES] > 1)).sum())

    def name(self, row: Mapping[str, Any]) -> str:
        """What a point is called."""
        return point_name(row, self.keys) or "the experiment"

    def interval(self, row: Mapping[str, Any], column: str) -> Interval:
        """A figure of a point over its replicates."""
        return Interval(row[column], row[column + LOW], row[column + HIGH])

    def difference(self, first: Mapping[str, Any], second: Mapping[str, Any], column: str) -> Interval:
        """By how much a figure of one point exceeds another's, paired by seed."""
        by_seed = []
        for row in (first, second):
            runs = self.ran
            for key in self.keys:
                runs = runs[runs[key] == row[key]]
            by_seed.append(runs.set_index(SEED)[column])
        paired = (by_seed[0] - by_seed[1]).dropna().tolist()
        return (bootstrap_interval if self.by_spread else t_interval)(paired)

    def records(self) -> list[dict[str, Any]]:
        """The points as mappings, `None` for what is missing."""
        return records(self.points)


def read_sweep_table(folder: Path) -> pd.DataFrame:
    """The table in a sweep's folder.

    Raises `CbsimError` with a line for each column that is missing or holds no numbers, or if the file can't
    be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / "table.parquet"
    try:
        stored: Any = pq.read_table(path)
        _check_columns(stored)
    except CbsimError as error:
        raise CbsimError(*(f"{path}: {problem}" for problem in error.problems)) from None
    except (OSError, pa.ArrowException) as error:
        raise CbsimError(f"{path}: can't be read: {first_line(error)}") from error
    try:
        table: pd.DataFrame = stored.to_pandas()
    except TypeError:  # a swept column is of another type than when pandas described it
        table = stored.replace_schema_metadata(None).to_pandas()
    return table


def _check_columns(stored: Any) -> None:
    """Raise `CbsimError` unless a stored table has the columns of a sweep's, and numbers in its figures."""
    import pyarrow as pa

    names: list[str] = stored.column_names
    needed = {"point", "error"}
    if "error" in names and stored.column("error").null_count:
        needed |= {"num_requests", *(figure.key for figure in (*COMPARED, MFU, MBU)), *BOOKKEEPING}
    missing = sorted(needed - {*names})
    if missing:
        raise CbsimError(f"no table of a sweep: has no column {', '.join(missing)}")
    problems = ["column point: got empty cells; expected names"] if stored.column("point").null_count else []
    first = names.index("num_requests") if "num_requests" in names else len(names)
    for name in names[first:]:
        filled = stored.column(name).drop_null()
        kind = filled.type
        is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
        if name not in BOOKKEEPING and len(filled) and not is_number:
            problems.append(f"column {name}: got {kind} ({filled[0].as_py()!r}); expected numbers")
    if problems:
        raise CbsimError(*problems)


_DECIDING = (GOODPUT, ATTAINMENT, THROUGHPUT, TTFT, TPOT, ITL)
_THEN = "e2e_s.p99"
"""What decides among points that are the same by the sweep's aim: lower is better."""
_MAX_NAMED = 3
_ROUNDING = 1e-9


def sentence(sweep: Sweep) -> str:
    """The best point with its interval; of points that can't be told apart, the one of the shortest p99 E2E.

    Points can't be told apart where the better one's lead is below `SAME` or below one request, or where the
    interval of their differences over the seeds, the same for both, holds none.
    """
    column, aim = sweep.aim
    records = [row for row in sweep.records() if row[column] is not None]
    if not records:
        return "No point has anything to measure."
    ranked = sorted(records, key=lambda row: -row[column])
    best, *others = ranked
    near = [row for row in others if not _leads(sweep, best, row, column)]
    told = aim % _figure(sweep, best, column)
    chance = f" {_chance(sweep)}" if _chance(sweep) else ""
    if near:
        return f"{_together(sweep, [best, *near], len(others), told)} {_then(sweep, [best, *near])}{chance}"
    has = f"{_code_name(best, sweep.keys)} has the highest {told}"
    if not others:
        return f"{has}."
    if sweep.is_replicated:
        return f"{has}, clear of every other point."
    runner_up = f"{_code_name(others[0], sweep.keys)} follows with {format_figure(float(others[0][column]))}"
    return f"{has}; {runner_up}.{chance}"


def _chance(sweep: Sweep) -> str:
    """What stands behind figures without intervals; nothing where there are intervals."""
    if sweep.is_replicated:
        return ""
    if sweep.points[NUM_REPLICATES].max() > 1:
        return "Each point's replicates are identical."
    if any(key == "seed" or key.partition(".")[0] == "workload" for key in sweep.keys):
        return "Each point ran once."
    return "Each point ran once, on the same requests."


def determined_note(sweep: Sweep) -> list[str]:
    """What to know of replicates that are all the same."""
    num_points, num_same = len(sweep.points), sweep.num_determined
    if not num_same:
        return []
    whose = "" if num_same == num_points else f" of {num_same} of {num_points} points"
    return [
        f"replicates{whose} are identical and give no error bars: nothing in these runs is drawn. "
        "`workload.type=resampled` draws another such trace for each seed, `cost_model.uncertainty=true` "
        "other errors of a profile"
    ]


def replicate_table(sweep: Sweep) -> Table:
    """A row a point: the figures that decide, each with the half-width of its interval."""
    rows = [
        (sweep.name(row), str(row[NUM_REPLICATES]), *(_with_interval(row, figure) for figure in _DECIDING))
        for row in sweep.records()
    ]
    header = ("", "replicates", *(figure.title for figure in _DECIDING))
    failed = [f"failed: {error}" for error in sweep.table["error"].dropna()]
    notes = (*failed, *determined_note(sweep), sentence(sweep))
    return Table(header, tuple(rows), notes=tuple(note.replace("`", "") for note in notes))


def _leads(sweep: Sweep, best: Mapping[str, Any], other: Mapping[str, Any], column: str) -> bool:
    """Whether a point is better than another of a lower figure by more than could be nothing."""
    lead = best[column] - other[column]
    # A request more or less within the SLO is a matter of rounding.
    request = 1 / best["makespan_s"] if column == GOODPUT.key and best.get("makespan_s") else 0.0
    if lead <= max(SAME * abs(best[column]), request * (1 + _ROUNDING)):
        return False
    return _is_clear(sweep, best, other, column)


def _is_clear(sweep: Sweep, more: Mapping[str, Any], less: Mapping[str, Any], column: str) -> bool:
    """Whether the interval of a difference, where there is one, holds only more."""
    return not sweep.is_replicated or sweep.difference(more, less, column).low > 0


def _together(sweep: Sweep, alike: Sequence[Mapping[str, Any]], num_others: int, told: str) -> str:
    """The points that share the highest figure, and why they can't be told apart."""
    why = "as far as these replicates can tell" if sweep.is_replicated else f"to within {SAME * 100:g}%"
    if len(alike) == num_others + 1:
        whose = "Both" if len(alike) == 2 else f"All {len(alike)}"
        return f"{whose} points have the same {told}, {why}."
    names = [_code_name(row, sweep.keys) for row in alike[:_MAX_NAMED]]
    if len(alike) > _MAX_NAMED:
        names.append(f"{len(alike) - _MAX_NAMED} more")
    return f"{', '.join(names[:-1])} and {names[-1]} share the highest {told}, {why}."


def _then(sweep: Sweep, alike: Sequence[Mapping[str, Any]]) -> str:
    """Which of them has the shortest p99 E2E, as far as that can be told."""
    known = sorted((row for row in alike if row.get(_THEN) is not None), key=lambda row: row[_THEN])
    if len(known) < len(alike):
        return "Their p99 E2E can't tell them apart, for not all of them have one."
    first, second, *_ = known
    if not _is_shorter(sweep, first, known[-1]):
        return f"Nor can their p99 E2E tell them apart, {_figure(sweep, first, _THEN)} s."
    of_these = "Of the two" if len(alike) == 2 else "Of these"
    leader = f"{of_these}, {_code_name(first, sweep.keys)} has the shortest p99 E2E"
    follows = f"{_figure(sweep, first, _THEN)} s; {_code_name(second, sweep.keys)} follows with"
    close = "" if _is_shorter(sweep, first, second) else ", which can't be told from it"
    return f"{leader}, {follows} {_figure(sweep, second, _THEN)} s{close}."


def _is_shorter(sweep: Sweep, first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    is_beyond_same = second[_THEN] - first[_THEN] > SAME * first[_THEN]
    return is_beyond_same and _is_clear(sweep, second, first, _THEN)


def _figure(sweep: Sweep, row: Mapping[str, Any], column: str) -> str:
    if sweep.is_replicated:
        return format_interval(sweep.interval(row, column))
    return format_figure(float(row[column]))


def _with_interval(row: Mapping[str, Any], figure: SummaryFigure) -> str:
    bounds = [row[figure.key + end] for end in ("", LOW, HIGH)]
    if None in bounds:
        return MISSING
    if bounds[1] == bounds[2]:
        return format_figure(bounds[0] * figure.scale)
    return format_interval(Interval(*(bound * figure.scale for bound in bounds)))


def _code_name(row: Mapping[str, Any], keys: Sequence[str]) -> str:
    """As `cbsim.studies.labels.point_name`, with names as code."""
    short = short_keys(keys)
    told = [
        f"`{row[key]}`" if is_word(row[key]) else f"`{short[key]}` {plain_text(row[key])}" for key in keys
    ]
    return " with ".join(told) or "the experiment"
