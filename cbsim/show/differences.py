"""The differences of two runs as a table, each with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cbsim.show.figures import SummaryFigure, latency
from cbsim.show.text import Table, format_share
from cbsim.studies.compare import WITHIN_SLO, Comparison, Difference


def difference_table(comparison: Comparison, first: str, second: str) -> Table:
    """A row for each figure: both runs, the change with its interval, and whether it is clear of none."""
    rows = tuple(_row(difference) for difference in comparison.differences)
    paired = f"{comparison.num_pairs:,} requests in both runs"
    for label, num_alone in ((first, comparison.num_only_first), (second, comparison.num_only_second)):
        if num_alone:
            paired += f", {num_alone:,} in {label} only"
    header = ("", first, second, "change", "95% interval", "")
    return Table(header, rows, notes=(paired, *comparison.notes))


def run_labels(folders: Sequence[Path]) -> list[str]:
    """Short names of folders: the last part of each, or the whole path where two would be the same."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def _row(difference: Difference) -> tuple[str, ...]:
    figure = SummaryFigure(WITHIN_SLO, "requests within SLO (%)", format_share)
    if difference.figure != WITHIN_SLO:
        figure = latency(difference.figure, difference.statistic)
    change, low, high = (_signed(figure, value) for value in difference.change)
    told = (figure.show(difference.first), figure.show(difference.second), change, f"{low} to {high}")
    return figure.title, *told, "" if difference.is_clear else "not clear"


def _signed(figure: SummaryFigure, value: float) -> str:
    text = figure.show(abs(value))
    return f"{'-' if value < 0 else '+'}{text}" if value else text
