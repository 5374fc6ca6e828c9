"""Draw the gallery's pictures from the folders of its sweeps: `python experiments/pictures/draw.py runs`.

Each picture whose sweep (`cbsim sweep NAME`) lies in the folder given is written beside this file.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

import cbsim
from cbsim.results.result import Result
from cbsim.show.latency_plot import latency_cdfs, show_shares
from cbsim.show.reader_tables import GOODPUT, LimitedFigure, SummaryFigure, latency
from cbsim.show.style import drawing, head, line_style, save_figure, show_plain
from cbsim.show.sweep_plot import sweep_curves
from cbsim.show.text import format_share

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

FIGURES = {
    "goodput_per_s": GOODPUT,
    "prefix_hit_rate": SummaryFigure("prefix_hit_rate", "prompt tokens found in the cache", format_share),
    "slo_attainment": SummaryFigure("slo_attainment", "requests within SLO", format_share),
}
"""Those that are no latencies."""

LADDERS = ("quickstart", "ladder-4")
"""Sweeps over schedulers: `ladder-4` is `ladder` at four times the trace's rate."""

PRIORITY_RUNS = ("fcfs", "priority", "aging 20 s", "aging 10 s", "on arrival", "on arrival, swap")
"""The points of `priorities.yaml` in their order."""


def curves(name: str, sweep: Path) -> Figure:
    """The picture of a sweep with two axes."""
    x, series, columns, title, caption = CURVES[name]
    figures = [LimitedFigure(FIGURES.get(key) or latency(*key.split("."))) for key in columns]
    return sweep_curves(pd.read_parquet(sweep / "table.parquet"), x, series, figures, title, caption)


def ladder(sweep: Path) -> Figure:
    """The latencies of a sweep over schedulers."""
    points = pd.read_parquet(sweep / "table.parquet")["point"]
    runs = [cbsim.load_run(sweep / "points" / point) for point in points]
    return latency_cdfs({run.config["scheduler"]["type"]: run for run in runs}, runs[0].promised)


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


def ttft_by_priority(results: Mapping[str, Result], title: str, caption: str = "") -> Figure:
    """A panel for each priority, a curve for each run under its label; the axis is logarithmic, seconds."""
    priorities = sorted({int(p) for result in results.values() for p in result.requests["priority"].unique()})
    with drawing(11, 4.2) as figure:
        panels = figure.subplots(1, len(priorities), squeeze=False, sharex=True)[0]
        for axes, priority in zip(panels, priorities, strict=True):
            for place, (run, result) in enumerate(results.items()):
                requests = result.requests
                ttft_s = np.sort(requests.loc[requests["priority"] == priority, "ttft_s"].dropna().to_numpy())
                share = np.arange(1, len(ttft_s) + 1) / max(len(ttft_s), 1)
                axes.plot(ttft_s, share, label=run, **line_style(place))
            axes.set(title=f"priority {priority}", xlabel="TTFT (s)", ylabel="share of requests")
            axes.set_xscale("log")
            show_shares(axes)
            show_plain(axes.xaxis)
        head(figure, title, caption, panels[0])
    return figure


def ttft_table(results: Mapping[str, Result]) -> pd.DataFrame:
    """TTFT of each run and priority: the number of requests and `p50`, `p99` and `max` in seconds."""
    tables = {
        name: result.requests.groupby("priority")["ttft_s"].agg(
            num_requests="size", p50="median", p99=lambda ttft_s: ttft_s.quantile(0.99), max="max"
        )
        for name, result in results.items()
    }
    table: pd.DataFrame = pd.concat(tables, names=["run"]).reset_index()
    return table


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
