"""Draw the gallery's pictures from the folders of its sweeps: `python experiments/pictures/draw.py runs`.

Each picture whose sweep (`cbsim sweep NAME`) lies in the folder given is written beside this file.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

import cbsim
from cbsim.show.cdf_plot import latency_cdfs, ttft_by_priority, ttft_table
from cbsim.show.style import save_figure
from cbsim.show.sweep_plot import sweep_curves

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURVES = {
    "chunk-budget": (
        "scheduler.max_tokens_per_step",
        "scheduler.chunk_size",
        ("ttft_s.p99", "itl_s.p99", "goodput_per_s"),
        "Token budget of a step and cap on a prompt's chunk",
        "azure-like at 24 requests/s, Llama-3-8B on an H200; chunk_size 0 is no cap. "
        "SLO: TTFT 2 s, TPOT 50 ms.",
    ),
    "recompute-or-swap": (
        "gpu.host_link_gb_s",
        "scheduler.preemption",
        ("ttft_s.p99", "itl_s.p99", "goodput_per_s"),
        "What to do with a victim's KV cache, by the speed of the host link",
        "azure-like at 17 requests/s, Llama-3-8B on an H200 with KV cache for 64,000 tokens. "
        "SLO: TTFT 2 s, TPOT 50 ms.",
    ),
    "prefix-caching": (
        "kv_cache.num_blocks",
        "kv_cache.prefix_caching",
        ("prefix_hit_rate", "ttft_s.p50", "slo_attainment"),
        "Prefix caching for conversations, by the size of the KV cache",
        "Conversations of 2 to 10 turns, 16 requests/s, Llama-3-8B on an H200; a block holds 16 tokens. "
        "SLO: TTFT 2 s, TPOT 50 ms.",
    ),
    "prefix-caching-mooncake": (
        "kv_cache.num_blocks",
        "kv_cache.prefix_caching",
        ("prefix_hit_rate", "ttft_s.p50", "slo_attainment"),
        "Prefix caching on Mooncake's synthetic trace, by the size of the KV cache",
        "3,993 requests of 15,300 prompt tokens on average, one a second, Llama-3-8B on an H200. "
        "SLO: TTFT 2 s, TPOT 50 ms.",
    ),
}
"""Of each sweep: setting along the axis, setting of the curves, figures of the panels, title and caption."""

LADDERS = ("quickstart", "ladder-4")
"""Sweeps over schedulers: `ladder-4` is `ladder` at four times the trace's rate."""

PRIORITY_RUNS = ("fcfs", "priority", "aging 20 s", "aging 10 s", "on arrival", "on arrival, swap")
"""The points of `priorities.yaml` in their order."""


def curves(name: str, sweep: Path) -> Figure:
    """The picture of a sweep with two axes."""
    x, series, columns, title, caption = CURVES[name]
    return sweep_curves(pd.read_parquet(sweep / "table.parquet"), x, series, columns, title, caption)


def ladder(sweep: Path) -> Figure:
    """The latencies of a sweep over schedulers."""
    points = pd.read_parquet(sweep / "table.parquet")["point"]
    runs = [cbsim.load_run(sweep / "points" / point) for point in points]
    return latency_cdfs({run.config["scheduler"]["type"]: run for run in runs}, runs[0].config["slo"])


def priorities(sweep: Path) -> Figure:
    """The picture of `priorities.yaml`; its table is printed."""
    points = pd.read_parquet(sweep / "table.parquet")["point"]
    runs = {
        label: cbsim.load_run(sweep / "points" / point)
        for label, point in zip(PRIORITY_RUNS, points, strict=True)
    }
    print(ttft_table(runs).round(2).to_string(index=False))
    return ttft_by_priority(
        runs,
        "Time to first token of urgent (0) and background (1) requests over three rush hours",
        "All but fcfs by priority; aging_s 20 or 10; preempt_on_arrival with recompute or swap.",
    )


def main(runs: Path) -> None:
    """Draw what is there."""
    pictures: dict[str, Callable[[Path], Figure]] = {name: partial(curves, name) for name in CURVES}
    pictures |= dict.fromkeys(LADDERS, ladder)
    pictures["priorities"] = priorities
    for name, draw in pictures.items():
        sweep = runs / name
        if (sweep / "table.parquet").exists():
            figure = draw(sweep)
            png, svg = save_figure(figure, Path(__file__).with_name(f"{name}.png"))
            svg.unlink()
            print(png)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs"))
