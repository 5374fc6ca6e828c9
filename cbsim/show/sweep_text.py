"""A sweep with a row a point, and in words: its best point, by how much, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cbsim.base.errors import CbsimError, damage
from cbsim.results.slo import EACH, Miss, Slo, joined
from cbsim.results.table_file import first_line
from cbsim.show.reader_tables import (
    ATTAINMENT,
    COMPARED,
    GOODPUT,
    ITL,
    MBU,
    MET,
    MFU,
    OF_REQUESTS,
    THROUGHPUT,
    TPOT,
    TTFT,
    SummaryFigure,
    is_traffic,
    limited_figures,
    records,
)
from cbsim.show.text import MISSING, Table, certainty, format_figure, format_interval, merged_column
from cbsim.studies.intervals import (
    BOOKKEEPING,
    HIGH,
    LOW,
    MIN_REPLICATES,
    NUM_REPLICATES,
    SAME,
    SEED,
    Interval,
    across_replicates,
    bootstrap_interval,
    is_known_by_spread,
    swept_columns,
    t_interval,
)
from cbsim.studies.labels import is_word, plain_text, point_name, setting_names
from cbsim.studies.sweep import check_table

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
    slo: Slo
    by_spread: bool = False
    """As for `cbsim.studies.intervals.across_replicates`."""
    rate: str = ""
    """The rate at which requests come to all points, in words; empty where they don't (`common_rate`)."""

    @classmethod
    def of(
        cls,
        table: pd.DataFrame,
        slo: Slo | Mapping[str, Any],
        config: Mapping[str, Any] | None = None,
    ) -> Sweep:
        """A sweep from its table, what its first point promises, whose limits may be swept, and the settings
        of the experiment, as resolved.
        """
        keys = [key for key in swept_columns(table) if key != SEED]
        by_spread = is_known_by_spread(config or {})
        points = across_replicates(table, by_spread=by_spread)
        return cls(table, points, keys, Slo.of(slo), by_spread, common_rate(config or {}, keys))

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
    def spread(self) -> str:
        """What stands beside means of replicates."""
        return SEEN if self.points[NUM_REPLICATES].min() < MIN_REPLICATES else "± 95% intervals"

    @property
    def aim(self) -> tuple[str, str]:
        """The figure that makes a point the best, and what it is called."""
        if self.slo.own:
            limits = "its own limits" if self.sweeps_limits else self.slo.describe_own()
            return "goodput_per_s", f"goodput, %s requests/s within {limits}"
        return "output_token_throughput_per_s", "throughput, %s output tokens/s"

    @property
    def sweeps_limits(self) -> bool:
        """Whether what is promised differs from point to point."""
        return any(key.partition(".")[0] == "slo" for key in self.keys)

    @property
    def num_determined(self) -> int:
        """Points of several runs that are the same in every figure: nothing in them was drawn."""
        figures = [name.removesuffix(HIGH) for name in self.points.columns if name.endswith(HIGH)]
        low, high = (self.points[[name + end for name in figures]].to_numpy() for end in (LOW, HIGH))
        is_same = ((low == high) | self.points[figures].isna().to_numpy()).all(axis=1)
        return int((is_same & (self.points[NUM_REPLICATES] > 1)).sum())

    def has(self, figure: SummaryFigure) -> bool:
        """Whether tables show a figure: not those of each request's limits where only the run has some."""
        is_missing = figure.key in OF_REQUESTS and self.points[figure.key].isna().all()
        return not (self.slo and is_missing)

    def promised(self, row: Mapping[str, Any]) -> Slo:
        """What a point promises; nothing that can be told where whole SLOs are swept."""
        if "slo" in self.keys:
            return Slo()
        swept = {key.removeprefix("slo."): row[key] for key in self.keys if key.startswith("slo.")}
        if not swept:
            return self.slo
        if not all(isinstance(limit, int | float) for limit in swept.values()):
            return Slo()
        limits = self.slo.plain()
        for key, limit in swept.items():
            name, _, statistic = key.partition(".")
            given = limits.get(name)
            below = given if isinstance(given, Mapping) else {EACH: given}
            limits[name] = {**below, statistic: limit} if statistic else limit
        return Slo.of(limits)

    def misses(self, row: Mapping[str, Any]) -> list[Miss]:
        """What a point, the mean of its replicates, misses of what it promises."""
        return self.promised(row).misses(row)

    def num_met(self, row: Mapping[str, Any]) -> int:
        """How many of a point's replicates meet the SLO, each by itself."""
        promised = self.promised(row)
        return sum(not promised.misses(run) for run in records(self._runs(row)))

    def _runs(self, row: Mapping[str, Any]) -> pd.DataFrame:
        """The runs of a point that didn't fail."""
        runs = self.ran
        for key in self.keys:
            runs = runs[runs[key] == row[key]]
        return runs

    def name(self, row: Mapping[str, Any]) -> str:
        """What a point is called."""
        return point_name(row, self.keys) or "the experiment"

    def interval(self, row: Mapping[str, Any], column: str) -> Interval:
        """A figure of a point over its replicates."""
        return Interval(row[column], row[column + LOW], row[column + HIGH])

    def seen(self, row: Mapping[str, Any], column: str) -> tuple[float, float] | None:
        """The least and the most of a figure where replicates are too few for an interval, and differ."""
        _, low, high = self.interval(row, column)
        return (low, high) if 1 < row[NUM_REPLICATES] < MIN_REPLICATES and low < high else None

    def difference(self, first: Mapping[str, Any], second: Mapping[str, Any], column: str) -> Interval:
        """By how much a figure of one point exceeds another's, paired by seed."""
        by_seed = [self._runs(row).set_index(SEED)[column] for row in (first, second)]
        paired = (by_seed[0] - by_seed[1]).dropna().tolist()
        return (bootstrap_interval if self.by_spread else t_interval)(paired)

    def records(self) -> list[dict[str, Any]]:
        """The points as mappings, `None` for what is missing."""
        return records(self.points)


def common_rate(config: Mapping[str, Any], keys: Sequence[str]) -> str:
    """In words, the rate at which requests come to all settings of `keys`, however fast they are served.

    Empty where a key varies it, or clients wait for their answers. `config` is the experiment as resolved.
    """
    workload = config.get("workload") or {"concurrency": 1}
    if workload.get("concurrency") is not None or any(map(is_traffic, keys)):
        return ""
    rate_per_s = workload.get("rate_per_s")
    return "this workload's rate" + (f", {rate_per_s:g} requests/s" if rate_per_s else "")


def read_sweep_table(folder: Path) -> pd.DataFrame:
    """The table in a sweep's folder.

    Raises `CbsimError` with a line for each column that is missing or holds no numbers, or if the file can't
    be read, or was altered.
    """
    import pyarrow.parquet as pq

    path = folder / "table.parquet"
    try:
        stored: Any = pq.read_table(path)
        _check_columns(stored)
    except CbsimError as error:
        raise CbsimError(*(f"{path}: {problem}" for problem in error.problems)) from None
    except damage() as error:
        raise CbsimError(f"{path}: can't be read: {first_line(error)}") from error
    check_table(path, stored)
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
        figures = {figure.key for figure in (*COMPARED, MFU, MBU)} - {MET.key}
        needed |= {"num_requests", *figures, *BOOKKEEPING}
    missing = sorted(needed - {*names})
    if missing:
        raise CbsimError(f"no table of a sweep: has no column {', '.join(missing)}")
    problems = ["column point: got empty cells; expected names"] if stored.column("point").null_count else []
    first = names.index("num_requests") if "num_requests" in names else len(names)
    for name in names[first:]:
        filled = stored.column(name).drop_null()
        kind = filled.type
        is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
        is_number = is_number or (name == MET.key and pa.types.is_boolean(kind))
        if name not in BOOKKEEPING and len(filled) and not is_number:
            problems.append(f"column {name}: got {kind} ({filled[0].as_py()!r}); expected numbers")
    if problems:
        raise CbsimError(*problems)


_DECIDING = (GOODPUT, ATTAINMENT, THROUGHPUT, TTFT, TPOT, ITL)
_THEN = "e2e_s.p99"
"""What decides among points that are the same by the sweep's aim: lower is better."""
_MAX_NAMED = 3
_MAX_TRAFFICS = 8
_HAIR = 0.02
"""A lead below this share, seen once, is called one that other requests may turn."""
SEEN = "with the least and the most of them"
"""What stands beside means of replicates too few for an interval."""
_ROUNDING = 1e-9


def sentence(sweep: Sweep) -> str:
    """Whether any point meets the SLO, then the best that does; the nearest where none does.

    And how sure that is, and what else may be asked.
    """
    names = [sweep.name(row) for row in records(sweep.ran)]
    further = [_few(sweep), _elsewhere(sweep), certainty(names, sweep.ran.get("notes", []))]
    return " ".join([_by_traffic(sweep) or _answer(sweep), *filter(None, further)])


def _by_traffic(sweep: Sweep) -> str:
    """The best setting for each traffic, where a sweep varies traffic and settings; empty where not both."""
    column, aim = sweep.aim
    traffic = [key for key in sweep.keys if is_traffic(key)]
    settings = [key for key in sweep.keys if not is_traffic(key)]
    measured = [row for row in sweep.records() if row[column] is not None]
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in measured:
        groups.setdefault(code_name(row, traffic), []).append(row)
    if not settings or len(groups) in (1, len(measured)):
        return ""
    told, num_met = [], 0
    for which, rows in groups.items():
        meeting = [row for row in rows if not sweep.misses(row)]
        best, *others = sorted(meeting or rows, key=lambda row: -row[column])
        near = [best, *(row for row in others if not _leads(sweep, best, row, column))]
        how_many = f", met by {len(meeting)} of {len(rows)}" if any(map(sweep.promised, rows)) else ""
        num_met += bool(meeting)
        told.append(f"{which}: {joined(_named(near, settings))}, {_figure(sweep, best, column)}{how_many}")
    if len(told) > _MAX_TRAFFICS:
        told[_MAX_TRAFFICS:] = [f"{len(told) - _MAX_TRAFFICS} more stand in the table"]
    figure, _, unit = aim.partition(", %s ")
    met = ""
    if any(map(sweep.promised, measured)):
        met = f"Met for {num_met} of {len(groups)} kinds of traffic. " if num_met else "Not met at all. "
    told_of_all = (
        f"{met}Settings compare within one traffic; the highest {figure}, {unit}: {'; '.join(told)}."
    )
    return f"{told_of_all} {_chance(sweep)}".rstrip()


def _answer(sweep: Sweep) -> str:
    column, _ = sweep.aim
    measured = [row for row in sweep.records() if row[column] is not None]
    if not measured:
        return "No point has anything to measure."
    if not any(map(sweep.promised, measured)):
        return _best(sweep, measured)
    meeting = [row for row in measured if not sweep.misses(row)]
    if not meeting:
        best = f" {_best(sweep, measured)}" if sweep.slo.own and len(measured) > 1 else ""
        return f"{_none_meets(sweep, measured)}{best}"
    if len(measured) == 1:
        return f"Met: {_best(sweep, meeting)}"
    whose = f"{len(meeting)} of {len(measured)}"
    if len(meeting) == len(measured):
        whose = "both" if len(measured) == 2 else f"all {len(measured)}"
    is_told = sweep.sweeps_limits or not sweep.slo.of_run
    limits = "" if is_told else f", {sweep.slo.promise()}"
    best = _best(sweep, meeting)
    return f"Met by {whose} settings{limits}: {best[0].lower()}{best[1:]}"


def _few(sweep: Sweep) -> str:
    """That intervals need more replicates, where there are too few."""
    if not sweep.is_replicated or sweep.points[NUM_REPLICATES].min() >= MIN_REPLICATES:
        return ""
    return "Two replicates say little, so that only what they saw is told: `replicates: 5` gives intervals."


def _elsewhere(sweep: Sweep) -> str:
    """That more load is another question, where several settings meet the SLO under this one."""
    is_met = [row for row in sweep.records() if sweep.promised(row) and sweep.promised(row).met(row)]
    if not sweep.rate or len(is_met) < 2:
        return ""
    return f"That is at {sweep.rate}; which of them can take the most, `cbsim capacity` finds."


def _none_meets(sweep: Sweep, rows: Sequence[Mapping[str, Any]]) -> str:
    """Which point is the nearest to the SLO, and what it misses."""
    missed = {place: max(miss.by for miss in sweep.misses(row)) for place, row in enumerate(rows)}
    least = min(missed.values())
    nearest = [rows[place] for place, by in missed.items() if by <= least * (1 + SAME)]
    told = joined(_named(nearest, sweep.keys))
    misses = sweep.promised(nearest[0]).all_misses(sweep.misses(nearest[0]))
    promise = sweep.promised(nearest[0]).promise()
    if len(rows) == 1:
        return f"Not met: {promise}: {told} {misses}."
    if len(nearest) == 1:
        return f"Not met: no setting meets {promise}: the nearest is {told}, which {misses}."
    return f"Not met: no setting meets {promise}: the nearest are {told}, of which the first {misses}."


def _best(sweep: Sweep, records: Sequence[Mapping[str, Any]]) -> str:
    """The best point with its interval; of points that can't be told apart, the one of the shortest p99 E2E.

    Points can't be told apart where the better one's lead is below `SAME` or below one request, or where the
    interval of their differences over the seeds, the same for both, holds none.
    """
    column, aim = sweep.aim
    ranked = sorted(records, key=lambda row: -row[column])
    best, *others = ranked
    near = [row for row in others if not _leads(sweep, best, row, column)]
    told = aim % _figure(sweep, best, column)
    chance = f" {_chance(sweep)}" if _chance(sweep) else ""
    if near:
        alike = sorted([best, *near], key=lambda row: math.inf if row.get(_THEN) is None else row[_THEN])
        is_all = len(near) + 1 == len(sweep.points)
        return f"{_together(sweep, alike, is_all, told)} {_then(sweep, alike)}{chance}"
    has = f"{code_name(best, sweep.keys)} has the highest {told}{_how_often(sweep, best)}"
    if not others:
        of = told.replace(", ", " of ", 1)
        return f"{code_name(best, sweep.keys)} has a {of}{_how_often(sweep, best)}.{chance}"
    if sweep.is_replicated:
        return f"{has}, clear of every other point."
    follows = float(others[0][column])
    runner_up = f"{code_name(others[0], sweep.keys)} follows with {format_figure(follows)}"
    lead = 1 - follows / best[column]
    by_a_hair = f", {lead:.1%} behind, which other requests may turn" if lead < _HAIR else ""
    return f"{has}; {runner_up}{by_a_hair}.{chance}"


def _how_often(sweep: Sweep, row: Mapping[str, Any]) -> str:
    """In how many replicates a point meets the SLO that its mean meets, unless in all of them."""
    num_runs, promised = row[NUM_REPLICATES], sweep.promised(row)
    if not promised or sweep.misses(row) or sweep.num_met(row) == num_runs:
        return ""
    return f" (met in {sweep.num_met(row)} of its {num_runs} replicates)"


def _chance(sweep: Sweep) -> str:
    """What stands behind figures without intervals; nothing where there are intervals."""
    if sweep.is_replicated:
        return ""
    if sweep.points[NUM_REPLICATES].max() > 1:
        return "Each point's replicates are identical."
    if sweep.keys and all(map(is_traffic, sweep.keys)):
        return "Each point ran once; they differ in their traffic, so that none is the better setting."
    if any(map(is_traffic, sweep.keys)):
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
    keys = [figure.key for figure in _DECIDING]
    figures = [*_DECIDING, *(each for each in limited_figures(sweep.slo) if each.key not in keys)]
    figures = [each for each in figures if sweep.has(each)]
    rows = [
        (sweep.name(row), str(row[NUM_REPLICATES]), *(_with_interval(sweep, row, each) for each in figures))
        for row in sweep.records()
    ]
    header = ("", "replicates", *(figure.title for figure in figures))
    told = [f"means of replicates {sweep.spread}"] if sweep.is_replicated else []
    return Table(header, tuple(rows), notes=(*told, *remarks(sweep)))


def remarks(sweep: Sweep) -> list[str]:
    """What failed, what the runs noted and what was rejected, each once."""
    told = [f"{error} (a point that failed)" for error in sweep.table["error"].dropna().unique()]
    names = [sweep.name(row) for row in records(sweep.ran)]
    for column in ("notes", "rejection_reasons"):
        told += merged_column(names, sweep.ran.get(column, [None] * len(names)))
    return [*told, *determined_note(sweep)]


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


def _together(sweep: Sweep, alike: Sequence[Mapping[str, Any]], is_all: bool, told: str) -> str:
    """The points that share the highest figure, and why they can't be told apart."""
    why = "as far as these replicates can tell" if sweep.is_replicated else f"to within {SAME * 100:g}%"
    if is_all:
        whose = "Both" if len(alike) == 2 else f"All {len(alike)}"
        return f"{whose} points have the same {told}, {why}."
    return f"{joined(_named(alike, sweep.keys))} share the highest {told}, {why}."


def _named(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> list[str]:
    """What points are called, a single key once, and how many more there are."""
    names = [code_name(row, keys) for row in rows[:_MAX_NAMED]]
    if len(keys) == 1 and not any(is_word(row[keys[0]]) for row in rows):
        names[1:] = [plain_text(row[keys[0]]) for row in rows[1:_MAX_NAMED]]
    return [*names, f"{len(rows) - _MAX_NAMED} more"] if len(rows) > _MAX_NAMED else names


def _then(sweep: Sweep, alike: Sequence[Mapping[str, Any]]) -> str:
    """Which of them has the shortest p99 E2E, as far as that can be told."""
    known = [row for row in alike if row.get(_THEN) is not None]
    if len(known) < len(alike):
        return "Their p99 E2E can't tell them apart, for not all of them have one."
    first, second, *_ = known
    if not _is_shorter(sweep, first, known[-1]):
        return f"Nor can their p99 E2E tell them apart, {_figure(sweep, first, _THEN)} s."
    of_these = "Of the two" if len(alike) == 2 else "Of these"
    leader = f"{of_these}, {code_name(first, sweep.keys)} has the shortest p99 E2E"
    follows = f"{_figure(sweep, first, _THEN)} s; {code_name(second, sweep.keys)} follows with"
    close = "" if _is_shorter(sweep, first, second) else ", which can't be told from it"
    return f"{leader}, {follows} {_figure(sweep, second, _THEN)} s{close}."


def _is_shorter(sweep: Sweep, first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    is_beyond_same = second[_THEN] - first[_THEN] > SAME * first[_THEN]
    return is_beyond_same and _is_clear(sweep, second, first, _THEN)


def _figure(sweep: Sweep, row: Mapping[str, Any], column: str) -> str:
    if sweep.is_replicated:
        return format_interval(sweep.interval(row, column), sweep.seen(row, column))
    return format_figure(float(row[column]))


def _with_interval(sweep: Sweep, row: Mapping[str, Any], figure: SummaryFigure) -> str:
    interval = sweep.interval(row, figure.key)
    if None in interval:
        return MISSING
    seen = sweep.seen(row, figure.key)
    scaled = None if seen is None else (seen[0] * figure.scale, seen[1] * figure.scale)
    return format_interval(interval.scaled(figure.scale), scaled)


def code_name(row: Mapping[str, Any], keys: Sequence[str]) -> str:
    """As `cbsim.studies.labels.point_name`, with names as code."""
    return " with ".join(setting_names(row, keys, "`")) or "the experiment"
