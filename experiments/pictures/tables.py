"""Print the gallery's tables from the folders of its sweeps: `python experiments/pictures/tables.py runs`.

Each table is Markdown, for the sweeps (`cbsim sweep NAME`) that lie in the folder given.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from cbsim.base.units import MS_PER_S
from cbsim.show.text import format_figure, format_share


class Column(NamedTuple):
    """A column of a table: its heading, how a figure is shown, and by what it is multiplied before."""

    heading: str
    is_share: bool = False
    scale: float = 1


FIGURES = {
    "prefix_hit_rate": Column("found in the cache", is_share=True),
    "num_preemptions": Column("preemptions"),
    "num_tokens_recomputed": Column("recomputed tokens"),
    "ttft_s.p50": Column("TTFT p50 (s)"),
    "ttft_s.p99": Column("TTFT p99 (s)"),
    "tpot_s.p50": Column("TPOT p50 (ms)", scale=MS_PER_S),
    "itl_s.p99": Column("ITL p99 (ms)", scale=MS_PER_S),
    "e2e_s.p50": Column("E2E p50 (s)"),
    "output_token_throughput_per_s": Column("output tokens/s"),
    "busy_fraction": Column("GPU busy", is_share=True),
    "goodput_per_s": Column("goodput (req/s)"),
    "slo_attainment": Column("within SLO", is_share=True),
}
"""Columns of a sweep's table, in the order in which they are shown."""

TABLES = {
    "chunk-budget": ("ttft_s.p50", "ttft_s.p99", "tpot_s.p50", "itl_s.p99", "e2e_s.p50", "goodput_per_s"),
    "recompute-or-swap": (
        "num_preemptions",
        "num_tokens_recomputed",
        "ttft_s.p50",
        "ttft_s.p99",
        "itl_s.p99",
        "output_token_throughput_per_s",
        "goodput_per_s",
    ),
    "prefix-caching": (
        "prefix_hit_rate",
        "ttft_s.p50",
        "ttft_s.p99",
        "tpot_s.p50",
        "num_preemptions",
        "slo_attainment",
    ),
    "prefix-caching-mooncake": (
        "prefix_hit_rate",
        "ttft_s.p50",
        "ttft_s.p99",
        "itl_s.p99",
        "busy_fraction",
        "slo_attainment",
    ),
}
"""Which figures each experiment's table shows."""


def markdown(table: pd.DataFrame, shown: tuple[str, ...]) -> str:
    """A sweep's settings and the figures `shown`, one line a point."""
    axes = list(table.columns[: table.columns.get_loc("num_requests")])
    figures = [name for name in FIGURES if name in shown]
    headings = [f"`{axis.split('.')[-1]}`" for axis in axes] + [FIGURES[name].heading for name in figures]
    lines = [headings, ["---"] * len(headings)]
    for _, point in table.sort_values(axes).iterrows():
        settings = [
            f"{point[axis]:,g}" if is_number(point[axis]) else str(point[axis]).lower() for axis in axes
        ]
        lines.append(settings + [cell(FIGURES[name], point[name]) for name in figures])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def is_number(value: object) -> bool:
    """Whether a setting is a number, and not a switch."""
    return not isinstance(value, (bool, str))


def cell(column: Column, value: float) -> str:
    """One figure as text."""
    if column.is_share:
        return "" if pd.isna(value) else format_share(value)
    return format_figure(value * column.scale)


def main(runs: Path) -> None:
    """Print what is there."""
    for name, shown in TABLES.items():
        path = runs / name / "table.parquet"
        if path.exists():
            print(f"{name}\n\n{markdown(pd.read_parquet(path), shown)}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs"))
