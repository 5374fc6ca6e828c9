"""What a scaling study leaves beside its `bench.json`: the table, and the picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cbsim.lab.bench.machine import Machine
from cbsim.lab.bench.scaling import Study
from cbsim.lab.bench.scaling_tables import scaling_frame
from cbsim.lab.bench.study import Row
from cbsim.results.output import BENCH
from cbsim.show.scaling_plot import scaling_picture
from cbsim.show.style import save_figure
from cbsim.studies.sweep import save_table


def save_study(study: Study, machine: Machine, rows: Sequence[Row], folder: Path) -> list[str]:
    """Write table and picture of what was measured; returns the names of all files a reader wants.

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
