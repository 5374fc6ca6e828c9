"""What was measured, for its readers: tables, plain data, and of a scaling study a folder with a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd

from cbsim.base.units import GIGA, KILO, MEGA, US_PER_S, markdown_table
from cbsim.lab.bench.scaling import Axis, Study
from cbsim.lab.bench.study import Row
from cbsim.lab.bench.work_timing import Machine, Measured
from cbsim.lab.bench.works import Work
from cbsim.results.output import BENCH
from cbsim.show.lab_plot import scaling_picture
from cbsim.show.style import save_figure
from cbsim.show.text import MISSING, Table, format_figure, format_share
from cbsim.studies.sweep import save_table

Rows = Sequence[tuple[Work, Measured]]
GRADES = ("target", "stretch")
"""What the two goals of a work are called."""

FIGURES: Mapping[str, Callable[[Measured], str]] = {
    "requests": lambda measured: f"{measured.num_requests:,}",
    "steps": lambda measured: f"{measured.num_steps:,}",
    "running": lambda measured: format_figure(measured.mean_running),
    "CPU s": lambda measured: format_figure(measured.cpu_s),
    "us a step": lambda measured: format_figure(measured.s_per_step * US_PER_S),
    "us a request": lambda measured: format_figure(measured.s_per_request * US_PER_S),
    "steps/s": lambda measured: f"{measured.num_steps / measured.cpu_s:,.0f}",
    "bare SimPy s": lambda measured: format_figure(measured.bare_simpy_s),
    "times": lambda measured: format_figure(measured.bare_simpy_s and measured.cpu_s / measured.bare_simpy_s),
    "metrics": lambda measured: format_share(
        measured.metrics_cpu_s and measured.metrics_cpu_s / measured.cpu_s
    ),
    "peak MB": lambda measured: f"{measured.peak_bytes / MEGA:,.0f}",
}
"""The columns of figures that a table may have, and what they show."""
LIMITS: Mapping[str, Callable[[float], str]] = {
    "cpu_s": lambda most: f"{most:g} s",
    "s_per_step": lambda most: f"{most * US_PER_S:g} us a step",
    "peak_bytes": lambda most: f"{most / MEGA:g} MB",
}
"""How the goal for each figure is told."""
WORK_COLUMNS = (
    *("requests", "steps", "CPU s", *GRADES, "reached"),
    *("bare SimPy s", "times", "us a step", "metrics", "peak MB"),
)
SCALE_COLUMNS = ("requests", "steps", "CPU s", "us a request", "peak MB")
SCALING_NOTE = "the cost of a request must not grow with the length of the trace"
FASTEST = "CPU s: of one core, the fastest of three runs (one where a run takes over 10 s); "
BARE_NOTE = (
    "bare SimPy: a process that waits as many times as there are steps, in the same process; times: CPU s "
    "over it"
)
WORKS_NOTES = (
    FASTEST + "simulation alone, arrivals read and arrays made, where a row says no more",
    BARE_NOTE,
    "peak memory: of a fresh process in which the work is the first thing that runs",
)
STUDY_NOTES = (
    FASTEST + "running: mean over all steps",
    BARE_NOTE,
    "peak MB: of a fresh process, interpreter and modules included",
)
TITLES = {
    Axis.REQUESTS: "By number of requests",
    Axis.RUNNING: "By requests running at once",
    Axis.REPLICAS: "By number of replicas",
}
STUDY_COLUMNS = [name for name in FIGURES if name not in ("us a step", "metrics")]
_CROWDED = 0.8
"""Fewer running than this share of the slots is worth a note."""


def bench_tables(rows: Rows) -> list[Table]:
    """The table of works and, where there are any, that of scaling; points without goals are no works."""
    works = [row for row in rows if row[0].scale is None or row[0].goals]
    scales = [row for row in rows if row[0].scale is not None]
    shown = (
        ("Works", WORK_COLUMNS, works, WORKS_NOTES),
        ("Scaling", SCALE_COLUMNS, scales, (SCALING_NOTE,)),
    )
    return [
        Table(("", *columns), tuple(_work_cells(*row, columns) for row in chosen), title, notes)
        for title, columns, chosen, notes in shown
        if chosen
    ]


def _work_cells(work: Work, measured: Measured, columns: Sequence[str]) -> tuple[str, ...]:
    goals = {grade: describe_goal(work, grade) for grade in GRADES} | {"reached": verdict(work, measured)}
    return work.name, *(goals.get(name) or FIGURES[name](measured) for name in columns)


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
            **{grade: goal_of(work, grade) or None for grade in GRADES},
            "experiment": dict(work.settings),
        }
        for work, measured in rows
    ]
    return {"machine": asdict(machine), "works": works}


def goal_of(work: Work, grade: str) -> dict[str, float]:
    """One of `GRADES` of a work: the most for each figure that it limits."""
    return {name: both[GRADES.index(grade)] for name, both in work.goals.items()}


def describe_goal(work: Work, grade: str) -> str:
    """A goal in a cell."""
    return ", ".join(LIMITS[name](most) for name, most in goal_of(work, grade).items()) or MISSING


def verdict(work: Work, measured: Measured) -> str:
    """The best goal that is reached in all its parts."""
    reached = ["missed"]
    for grade in GRADES:
        if all(getattr(measured, name) <= most for name, most in goal_of(work, grade).items()):
            reached.append(grade)
    return reached[-1] if work.goals else MISSING


def scaling_tables(rows: Sequence[Row]) -> list[Table]:
    """A table an axis, what its ends say under it; what columns mean under the last."""
    tables = [_axis_table(axis, [row for row in rows if row.point.axis is axis]) for axis in Axis]
    tables = [table for table in tables if table.rows]
    tables[-1:] = [replace(last, notes=(*last.notes, *STUDY_NOTES)) for last in tables[-1:]]
    return tables


def scaling_frame(rows: Sequence[Row]) -> pd.DataFrame:
    """A row a point that was measured or failed, SI units."""
    return pd.DataFrame([_record(row) for row in rows])


def scaling_json(study: Study, machine: Machine, rows: Sequence[Row]) -> dict[str, Any]:
    """Everything measured, in SI units, and what it was measured on."""
    return {
        "name": study.name,
        "machine": asdict(machine),
        "config": study.config,
        "notes": study.notes,
        "points": [_record(row) for row in rows],
    }


def save_study(study: Study, machine: Machine, rows: Sequence[Row], folder: Path) -> list[str]:
    """Write table and picture beside a study's `bench.json`; returns the names of all files a reader wants.

    Raises `CbsimError` if the folder can't be written.
    """
    table = scaling_frame(rows)
    save_table(table, folder)
    written = [BENCH, "table.csv", "table.parquet"]
    if any(row.measured is not None for row in rows):
        caption = ". ".join([machine.describe(), *machine.warnings(), "Each point in a fresh process."])
        figure = scaling_picture(table, f"{study.name}: what a simulation costs", caption)
        written += [path.name for path in save_figure(figure, folder / "scaling")]
    return written


def _record(row: Row) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    if row.measured is not None:
        took = row.measured
        rates = {"s_per_request": took.s_per_request, "steps_per_s": took.num_steps / took.cpu_s}
        figures = asdict(took) | rates
    return {"varied": row.point.axis.value, "value": row.point.value, **figures, "error": row.error}


def _axis_table(axis: Axis, rows: Sequence[Row]) -> Table:
    columns = [name for name in STUDY_COLUMNS if name != axis.column]
    cells = []
    for row in rows:
        figures = (MISSING if row.measured is None else FIGURES[name](row.measured) for name in columns)
        cells.append((f"{row.point.value:,}", *figures))
    failed = [f"{row.point.label}: {row.error}" for row in rows if row.error is not None]
    return Table((axis.column, *columns), tuple(cells), TITLES[axis], (*failed, *_sentences(axis, rows)))


def _sentences(axis: Axis, rows: Sequence[Row]) -> list[str]:
    """What the ends of an axis say, and where slots stayed empty."""
    known = [(row.point, row.measured) for row in rows if row.measured is not None]
    told = []
    if len(known) > 1:
        (first_point, first), (last_point, last) = known[0], known[-1]
        ratio = format_figure(last.s_per_request / first.s_per_request)
        told.append(
            f"a request costs {ratio} times as much with {last_point.label} as with {first_point.label}"
        )
        if axis is Axis.REQUESTS:
            growth_bytes = (last.peak_bytes - first.peak_bytes) / (last.num_requests - first.num_requests)
            growth_bytes = max(0.0, growth_bytes)
            million_bytes = first.peak_bytes + growth_bytes * (MEGA - first.num_requests)
            told.append(
                f"memory grows by {format_figure(growth_bytes / KILO)} kB a request: "
                f"a million of them would take {format_figure(million_bytes / GIGA)} GB"
            )
    if axis is Axis.RUNNING:
        told += [
            f"{point.label}: {format_figure(measured.mean_running)} ran on average: scheduler, KV blocks or "
            "the number of requests allow no more"
            for point, measured in known
            if measured.mean_running < _CROWDED * point.value
        ]
    return told
