"""A scaling study for its readers: a table an axis, one frame of everything, plain data, the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cbsim.base.units import GIGA, KILO, MEGA
from cbsim.lab.bench.bench_tables import FIGURES
from cbsim.lab.bench.machine import Machine
from cbsim.lab.bench.scaling import Axis, Study
from cbsim.lab.bench.study import Row
from cbsim.results.output import BENCH
from cbsim.show.text import MISSING, Table, format_figure
from cbsim.studies.sweep import save_table

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
COLUMNS = [name for name in FIGURES if name not in ("us a step", "metrics")]
_CROWDED = 0.8
"""Fewer running than this share of the slots is worth a note."""


def scaling_tables(rows: Sequence[Row]) -> list[Table]:
    """A table an axis, what its ends say under it; what columns mean under the last."""
    tables = [_table(axis, [row for row in rows if row.point.axis is axis]) for axis in Axis]
    tables = [table for table in tables if table.rows]
    tables[-1:] = [replace(last, notes=(*last.notes, *COLUMN_NOTES)) for last in tables[-1:]]
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


def save_study(study: Study, machine: Machine, rows: Sequence[Row], folder: Path) -> list[str]:
    """Write table and picture beside a study's `bench.json`; returns the names of all files a reader wants.

    Raises `CbsimError` if the folder can't be written.
    """
    from cbsim.show.scaling_plot import scaling_picture
    from cbsim.show.style import save_figure

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
        rates = {"s_per_request": row.measured.s_per_request, "steps_per_s": row.measured.steps_per_s}
        figures = asdict(row.measured) | rates
    return {"varied": row.point.axis.value, "value": row.point.value, **figures, "error": row.error}


def _table(axis: Axis, rows: Sequence[Row]) -> Table:
    columns = [name for name in COLUMNS if name != axis.column]
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
