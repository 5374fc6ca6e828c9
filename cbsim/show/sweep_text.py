"""A sweep in words: its best point, by how much, which others can't be told from it, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cbsim.show.figures import ATTAINMENT, GOODPUT, ITL, SAME, THROUGHPUT, TPOT, TTFT, SummaryFigure
from cbsim.show.sweep_points import Sweep
from cbsim.show.text import MISSING, Table, format_figure, format_interval
from cbsim.studies.intervals import HIGH, LOW, NUM_REPLICATES, Interval
from cbsim.studies.labels import is_word, plain_text, short_keys

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
