"""The tables of answers with intervals: differences of two runs, replicated points, capacities."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cbsim.base.units import MS_PER_S
from cbsim.show.text import Table, format_figure, format_share
from cbsim.studies.compare import WITHIN_SLO, Comparison, Difference
from cbsim.studies.intervals import Interval

_NAMES = {
    "ttft_s": ("TTFT", "s"),
    "tpot_s": ("TPOT", "ms"),
    "max_itl_s": ("longest ITL", "ms"),
    "e2e_s": ("E2E", "s"),
    "queue_s": ("queue", "s"),
    WITHIN_SLO: ("requests within SLO", "%"),
}
_SCALES = {"s": 1, "ms": MS_PER_S, "%": 1}


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


def format_interval(interval: Interval, digits: int = 3) -> str:
    """`11.8 ± 0.3`: the estimate to as many digits as its half-width of two digits allows."""
    half_width = format_figure(interval.half_width, digits=2)
    decimals = len(half_width.partition(".")[2])
    estimate = (
        f"{interval.estimate:,.{decimals}f}" if decimals else format_figure(interval.estimate, digits=digits)
    )
    return f"{estimate} ± {half_width}"


def _row(difference: Difference) -> tuple[str, ...]:
    name, unit = _NAMES[difference.figure]
    title = (
        f"{name} ({unit})" if difference.figure == WITHIN_SLO else f"{name} {difference.statistic} ({unit})"
    )
    low, high = (_signed(bound, unit) for bound in (difference.change.low, difference.change.high))
    return (
        title,
        _plain(difference.first, unit),
        _plain(difference.second, unit),
        _signed(difference.change.estimate, unit),
        f"{low} to {high}",
        "" if difference.is_clear else "not clear",
    )


def _plain(value: float, unit: str) -> str:
    return format_share(value) if unit == "%" else format_figure(value * _SCALES[unit])


def _signed(value: float, unit: str) -> str:
    text = _plain(abs(value), unit)
    return f"{'-' if value < 0 else '+'}{text}" if value else text
