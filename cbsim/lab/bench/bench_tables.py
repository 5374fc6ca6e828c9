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

FIGURES: Mapping[str, Callable[[Measured], str]] = {
    "requests": lambda measured: f"{measured.num_requests:,}",
    "steps": lambda measured: f"{measured.num_steps:,}",
    "running": lambda measured: format_figure(measured.mean_running),
    "CPU s": lambda measured: format_figure(measured.cpu_s),
    "us a step": lambda measured: format_figure(measured.s_per_step * US_PER_S),
    "us a request": lambda measured: format_figure(measured.s_per_request * US_PER_S),
    "steps/s": lambda measured: f"{measured.steps_per_s:,.0f}",
    "bare SimPy s": lambda measured: format_figure(measured.bare_simpy_s),
    "times": lambda measured: format_figure(measured.bare_ratio),
    "metrics": lambda measured: format_share(measured.metrics_share),
    "peak MB": lambda measured: f"{measured.peak_bytes / MEGA:,.0f}",
}
"""The columns of figures that a table may have, and what they show."""
LIMITS: Mapping[str, Callable[[float], str]] = {
    "cpu_s": lambda most: f"{most:g} s",
    "s_per_step": lambda most: f"{most * US_PER_S:g} us a step",
    "peak_bytes": lambda most: f"{most / MEGA:g} MB",
}
"""How each part of a `Goal` is told."""
WORK_COLUMNS = (
    *("requests", "steps", "CPU s", "target", "stretch", "reached"),
    *("bare SimPy s", "times", "us a step", "metrics", "peak MB"),
)
SCALE_COLUMNS = ("requests", "steps", "CPU s", "us a request", "peak MB")
SCALING_NOTE = "the cost of a request must not grow with the length of the trace"
WORKS_NOTES = (
    "CPU s: of one core, the fastest of three runs (one where a run takes over 10 s); simulation alone, "
    "arrivals read and arrays made, where a row says no more",
    "bare SimPy: a process that waits as many times as there are steps, in the same process; times: "
    "the work's CPU s over it",
    "peak memory: of a fresh process in which the work is the first thing that runs",
)


def bench_tables(rows: Rows) -> list[Table]:
    """The table of works and, where there are any, that of scaling; points without goals are no works."""
    works = [row for row in rows if row[0].scale is None or row[0].target is not None]
    scales = [row for row in rows if row[0].scale is not None]
    tables = [
        _table("Works", WORK_COLUMNS, works, WORKS_NOTES),
        _table("Scaling", SCALE_COLUMNS, scales, (SCALING_NOTE,)),
    ]
    return [table for table in tables if table.rows]


def _table(title: str, columns: Sequence[str], rows: Rows, notes: tuple[str, ...]) -> Table:
    cells = []
    for work, measured in rows:
        goals = {
            "target": describe_goal(work.target),
            "stretch": describe_goal(work.stretch),
            "reached": verdict(work, measured),
        }
        cells.append((work.name, *(goals.get(name) or FIGURES[name](measured) for name in columns)))
    return Table(("", *columns), tuple(cells), title, notes)


def to_markdown(table: Table) -> str:
    """A table as Markdown, its notes as a list under it."""
    notes = ["", *(f"* {note}" for note in table.notes)] if table.notes else []
    return "\n".join([f"**{table.title}**", "", markdown_table(table.header, table.rows), *notes])


def to_json(machine: Machine, rows: Rows) -> dict[str, Any]:
    """Everything measured, in SI units."""
    works = [
        {
            "name": work.name,
            "how": work.how,
            **asdict(measured),
            "target": work.target and work.target.limits,
            "stretch": work.stretch and work.stretch.limits,
            "experiment": dict(work.settings),
        }
        for work, measured in rows
    ]
    return {"machine": asdict(machine), "works": works}


def describe_goal(goal: Goal | None) -> str:
    """A goal in a cell."""
    return ", ".join(LIMITS[name](most) for name, most in goal.limits.items()) if goal else MISSING


def is_met(goal: Goal, measured: Measured) -> bool:
    """Whether every part of a goal is reached."""
    return all(getattr(measured, name) <= most for name, most in goal.limits.items())


def verdict(work: Work, measured: Measured) -> str:
    """The best goal that is reached."""
    if work.target is None:
        return MISSING
    if work.stretch is not None and is_met(work.stretch, measured):
        return "stretch"
    return "target" if is_met(work.target, measured) else "missed"
