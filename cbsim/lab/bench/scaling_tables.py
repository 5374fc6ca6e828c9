"""A scaling study for its readers: a table an axis, one frame of everything, and plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cbsim.base.units import GIGA, KILO, MEGA, US_PER_S
from cbsim.lab.bench.machine import Machine
from cbsim.lab.bench.scaling import Axis, Study
from cbsim.lab.bench.study import Row
from cbsim.lab.bench.work_timing import Measured
from cbsim.show.text import MISSING, Table, format_figure

if TYPE_CHECKING:
    import pandas as pd

COLUMN_NOTES = (
    "CPU s: of one core, the fastest of three runs (one where a run takes over 10 s); running: mean over "
    "all steps",
    "bare SimPy: a process that waits as many times as there are steps, in the same process; times: CPU s "
    "over it",
    "peak MB: of a fresh process, interpreter and modules included",
)
TITLES = {
    Axis.REQUESTS: "By number of requests",
    Axis.RUNNING: "By requests running at once",
    Axis.REPLICAS: "By number of replicas",
}
NAMES = {Axis.REQUESTS: "requests", Axis.RUNNING: "max_num_seqs", Axis.REPLICAS: "replicas"}
"""What the first column of an axis is called."""
_CROWDED = 0.8
"""Fewer running than this share of the slots is worth a note."""

Show = Callable[[Measured], str]
COLUMNS: Mapping[str, Show] = {
    "requests": lambda measured: f"{measured.num_requests:,}",
    "steps": lambda measured: f"{measured.num_steps:,}",
    "running": lambda measured: format_figure(measured.mean_running),
    "CPU s": lambda measured: format_figure(measured.cpu_s),
    "us a request": lambda measured: format_figure(measured.s_per_request * US_PER_S),
    "steps/s": lambda measured: f"{measured.steps_per_s:,.0f}",
    "bare SimPy s": lambda measured: format_figure(measured.bare_simpy_s),
    "times": lambda measured: format_figure(measured.bare_ratio),
    "peak MB": lambda measured: f"{measured.peak_bytes / MEGA:,.0f}",
}


def scaling_tables(rows: Sequence[Row]) -> list[Table]:
    """A table an axis, what its ends say under it; what columns mean under the last."""
    tables = []
    for axis, title in TITLES.items():
        found = [row for row in rows if row.point.axis is axis]
        if found:
            columns = {name: show for name, show in COLUMNS.items() if name != NAMES[axis]}
            cells = tuple((f"{row.point.value:,}", *_cells(row, columns)) for row in found)
            failed = [f"{row.point.label}: {row.error}" for row in found if row.error is not None]
            header = (NAMES[axis], *columns)
            tables.append(Table(header, cells, title, (*failed, *_sentences(axis, found))))
    if tables:
        last = tables[-1]
        tables[-1] = Table(last.header, last.rows, last.title, (*last.notes, *COLUMN_NOTES))
    return tables


def scaling_frame(rows: Sequence[Row]) -> pd.DataFrame:
    """A row a point that was measured or failed, SI units."""
    import pandas as pd

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


def _record(row: Row) -> dict[str, Any]:
    measured = row.measured
    figures: dict[str, Any] = {} if measured is None else asdict(measured)
    if measured is not None:
        figures |= {"s_per_request": measured.s_per_request, "steps_per_s": measured.steps_per_s}
    return {"varied": row.point.axis.value, "value": row.point.value, **figures, "error": row.error}


def _cells(row: Row, columns: Mapping[str, Show]) -> list[str]:
    measured = row.measured
    return [MISSING if measured is None else show(measured) for show in columns.values()]


def _sentences(axis: Axis, rows: Sequence[Row]) -> list[str]:
    """What the ends of an axis say, and where slots stayed empty."""
    known = [(row.point, row.measured) for row in rows if row.measured is not None]
    told = []
    if len(known) > 1:
        (first_point, first), (last_point, last) = known[0], known[-1]
        ratio = last.s_per_request / first.s_per_request
        told.append(
            f"a request costs {format_figure(ratio)} times as much with {last_point.label} as with "
            f"{first_point.label}"
        )
        if axis is Axis.REQUESTS:
            growth_bytes = (last.peak_bytes - first.peak_bytes) / (last.num_requests - first.num_requests)
            told.append(
                f"memory grows by {format_figure(max(0.0, growth_bytes) / KILO)} kB a request: "
                f"a million of them would take {_gigabytes(first, growth_bytes)}"
            )
    if axis is Axis.RUNNING:
        idle = [
            (point, measured) for point, measured in known if measured.mean_running < _CROWDED * point.value
        ]
        told += [
            f"{point.label}: {format_figure(measured.mean_running)} ran on average: scheduler, KV blocks or "
            "the number of requests allow no more"
            for point, measured in idle
        ]
    return told


def _gigabytes(first: Measured, growth_bytes: float) -> str:
    total_bytes = first.peak_bytes + max(0.0, growth_bytes) * (MEGA - first.num_requests)
    return f"{format_figure(total_bytes / GIGA)} GB"
