"""The benchmark as tables: for reading, for a README, and as plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from cbsim.base.markdown import markdown_table
from cbsim.base.units import MEGA, US_PER_S
from cbsim.lab.bench.machine import Machine
from cbsim.lab.bench.work_timing import Measured
from cbsim.lab.bench.works import Goal, Work
from cbsim.show.text import MISSING, Table, format_figure, format_share

Rows = Sequence[tuple[Work, Measured]]

SCALING_NOTE = "the cost of a request must not grow with the length of the trace"
WORKS_NOTES = (
    "CPU s: of one core, the fastest of three runs (one where a run takes over 10 s); simulation alone, "
    "arrivals read and arrays made, where a row says no more",
    "bare SimPy: a process that waits as many times as there are steps, in the same process; times: "
    "the work's CPU s over it",
    "peak memory: of a fresh process in which the work is the first thing that runs",
)


def bench_tables(rows: Rows) -> list[Table]:
    """The table of works and, where there are any, that of scaling."""
    works = [row for row in rows if not _is_small(row[0])]
    scales = [row for row in rows if row[0].scale is not None]
    tables = [
        _table("Works", WORK_COLUMNS, works, WORKS_NOTES),
        _table("Scaling", SCALE_COLUMNS, scales, (SCALING_NOTE,)),
    ]
    return [table for table in tables if table.rows]


def to_markdown(table: Table) -> str:
    """A table as Markdown, its notes as a list under it."""
    notes = ["", *(f"* {note}" for note in table.notes)] if table.notes else []
    return "\n".join([f"**{table.title}**", "", markdown_table(table.header, table.rows), *notes])


def to_json(machine: Machine, rows: Rows) -> dict[str, Any]:
    """Everything measured, in SI units."""
    return {
        "machine": asdict(machine),
        "works": [
            {
                "name": work.name,
                "how": work.how.value,
                **asdict(measured),
                "target": _goal_json(work.target),
                "stretch": _goal_json(work.stretch),
                "experiment": dict(work.settings),
            }
            for work, measured in rows
        ],
    }


def describe_goal(goal: Goal | None) -> str:
    """A goal in a cell."""
    if goal is None:
        return MISSING
    parts = []
    if goal.cpu_s is not None:
        parts.append(f"{goal.cpu_s:g} s")
    if goal.s_per_step is not None:
        parts.append(f"{goal.s_per_step * US_PER_S:g} us a step")
    if goal.peak_bytes is not None:
        parts.append(f"{goal.peak_bytes / MEGA:g} MB")
    if goal.metrics_share is not None:
        parts.append(f"metrics {goal.metrics_share:.0%}")
    return ", ".join(parts)


def is_met(goal: Goal, measured: Measured) -> bool:
    """Whether every part of a goal is reached."""
    return (
        (goal.cpu_s is None or measured.cpu_s <= goal.cpu_s)
        and (goal.s_per_step is None or measured.s_per_step <= goal.s_per_step)
        and (goal.peak_bytes is None or measured.peak_bytes <= goal.peak_bytes)
        and (goal.metrics_share is None or (measured.metrics_share or 0.0) <= goal.metrics_share)
    )


def verdict(work: Work, measured: Measured) -> str:
    """The best goal that is reached."""
    if work.target is None:
        return MISSING
    if work.stretch is not None and is_met(work.stretch, measured):
        return "stretch"
    return "target" if is_met(work.target, measured) else "missed"


def _is_small(work: Work) -> bool:
    """Points of the scaling table that are no work of their own."""
    return work.scale is not None and work.target is None


def _us(seconds: float) -> str:
    return format_figure(seconds * US_PER_S)


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / MEGA:,.0f}"


Show = Callable[[Work, Measured], str]
COMMON: Mapping[str, Show] = {
    "": lambda work, _: work.name,
    "requests": lambda _, measured: f"{measured.num_requests:,}",
    "steps": lambda _, measured: f"{measured.num_steps:,}",
    "CPU s": lambda _, measured: format_figure(measured.cpu_s),
}
GOALS: Mapping[str, Show] = {
    "target": lambda work, _: describe_goal(work.target),
    "stretch": lambda work, _: describe_goal(work.stretch),
    "reached": verdict,
}
MEMORY: Mapping[str, Show] = {"peak MB": lambda _, measured: _megabytes(measured.peak_bytes)}
WORK_COLUMNS: Mapping[str, Show] = {
    **COMMON,
    **GOALS,
    "bare SimPy s": lambda _, measured: format_figure(measured.bare_simpy_s),
    "times": lambda _, measured: format_figure(measured.bare_ratio),
    "us a step": lambda _, measured: _us(measured.s_per_step),
    "metrics": lambda _, measured: format_share(measured.metrics_share),
    **MEMORY,
}
SCALE_COLUMNS: Mapping[str, Show] = {
    **COMMON,
    "us a request": lambda _, measured: _us(measured.s_per_request),
    **MEMORY,
}


def _table(title: str, columns: Mapping[str, Show], rows: Rows, notes: tuple[str, ...] = ()) -> Table:
    cells = tuple(tuple(show(work, measured) for show in columns.values()) for work, measured in rows)
    return Table(tuple(columns), cells, title, notes)


def _goal_json(goal: Goal | None) -> dict[str, Any] | None:
    return None if goal is None else {key: value for key, value in asdict(goal).items() if value is not None}
