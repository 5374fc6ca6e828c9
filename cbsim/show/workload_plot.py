"""The picture of a workload: when requests arrive, and how long prompts and answers are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cbsim.base.units import S_PER_DAY, S_PER_HOUR
from cbsim.show.style import INK, PALETTE, drawing, head, save_figure, show_percent
from cbsim.workload.request import FloatColumn, IntColumn
from cbsim.workload.request_source import Workload
from cbsim.workload.stats import WorkloadColumns

NUM_BINS = 60
"""Bins of every histogram."""
_LONG_S = 2 * S_PER_HOUR
_VERY_LONG_S = 4 * S_PER_DAY


def plot_workload(workload: Workload, path: str | Path) -> list[Path]:
    """Reads a workload through and draws it; returns the PNG and the SVG written beside it."""
    return save_figure(workload_figure(WorkloadColumns.of(workload.requests())), path)


def workload_figure(columns: WorkloadColumns) -> Figure:
    """Arrivals over time on top; below, histogram and CDF of prompts' and answers' lengths."""
    with drawing(11, 6.4) as figure:
        layout = figure.add_gridspec(2, 2)
        _draw_arrivals(figure.add_subplot(layout[0, :]), columns.arrival_s)
        _draw_lengths(figure.add_subplot(layout[1, 0]), columns.num_prompt_tokens, "Prompts", PALETTE[0])
        _draw_lengths(figure.add_subplot(layout[1, 1]), columns.num_output_tokens, "Answers", PALETTE[1])
        caption = "Bars: how many. Line: share no longer than that. Dots: p50, p90 and p99."
        head(figure, f"Workload of {len(columns.arrival_s):,} requests", caption)
    return figure


def _draw_arrivals(axes: Axes, arrival_s: FloatColumn) -> None:
    span_s = float(arrival_s[-1] - arrival_s[0]) if len(arrival_s) else 0.0
    scale, unit = 1, "s"
    if span_s > _VERY_LONG_S:
        scale, unit = S_PER_DAY, "days"
    elif span_s > _LONG_S:
        scale, unit = S_PER_HOUR, "h"
    if span_s:
        counts, edges = np.histogram(arrival_s, bins=NUM_BINS)
        axes.stairs(counts / np.diff(edges), edges / scale, fill=True, color=PALETTE[2], alpha=0.5)
        axes.axhline((len(arrival_s) - 1) / span_s, color=INK, linewidth=0.8, linestyle="--")
    else:
        axes.text(0.5, 0.5, "all at one instant", transform=axes.transAxes, ha="center", va="center")
    axes.set(title="Arrivals (dashed: mean)", xlabel=f"time ({unit})", ylabel="requests per second")
    axes.set_ylim(bottom=0)


def _draw_lengths(axes: Axes, lengths: IntColumn, title: str, color: str) -> None:
    axes.set(title=title, xlabel="tokens", ylabel="requests")
    shares = axes.twinx()
    shares.set_ylim(0, 1.01)
    shares.grid(False)
    show_percent(shares.yaxis)
    if not len(lengths):
        return
    bins = np.geomspace(max(1, lengths.min()) * 0.95, lengths.max() * 1.05, NUM_BINS + 1)
    axes.hist(lengths, bins=bins.tolist(), color=color, alpha=0.4)
    axes.set_xscale("log")
    quantiles = np.linspace(0, 1, 501)
    shares.plot(np.quantile(lengths, quantiles), quantiles, color=color)
    marked = np.array([0.5, 0.9, 0.99])
    shares.plot(np.quantile(lengths, marked), marked, "o", markersize=4, color=color)
