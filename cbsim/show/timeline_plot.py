"""The timeline: queue, batch and KV use over the run, a row of panels for each run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import PercentFormatter, StrMethodFormatter

from cbsim.results.result import Result
from cbsim.results.run_log import Column
from cbsim.show.style import PALETTE, head, new_figure, styled

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NUM_BINS = 160
"""Panels show so many bins: the line is the mean over a bin's time, the band reaches to its highest step."""
MAX_SPREAD = 4
"""Runs share an axis unless their highest values differ by more than this factor."""
_PANELS = {
    "waiting requests": "num_waiting",
    "decodes in a step": "num_decode_seqs",
    "prompt tokens in a step": "num_prefill_tokens",
    "KV blocks taken": "kv_share",
}
_CAPTION = (
    f"Line: mean over 1/{NUM_BINS} of the time shown, idle time as 0. Band: up to the highest step in it. "
    "Runs that differ widely have scales of their own."
)


def timeline(results: Mapping[str, Result]) -> Figure:
    """Panels over simulated time; axes are shared by all runs where that leaves each of them legible."""
    with styled():
        figure = new_figure(13, 1.4 + 1.9 * len(results))
        panels = figure.subplots(max(1, len(results)), len(_PANELS), squeeze=False)
        ends_s = _scales([_end_s(result.steps) for result in results.values()])
        for row, (label, result), end_s in zip(panels, results.items(), ends_s, strict=False):
            edges_s = np.linspace(0, end_s, NUM_BINS + 1)
            for axes, column, color in zip(row, _PANELS.values(), PALETTE[: len(row)], strict=True):
                _draw(axes, result.steps, column, edges_s, color)
                axes.set_xlim(0, end_s)
                axes.tick_params(labelbottom=len(set(ends_s)) > 1)
            row[0].set_ylabel(label, fontsize=10, fontweight="bold")
        for column_of_panels, title in zip(panels.T, _PANELS, strict=True):
            _label_column(column_of_panels, title)
        figure.align_ylabels(panels[:, 0])
        head(figure, "Queue, batch and KV use over time", _CAPTION)
    return figure


def _label_column(panels: Sequence[Axes], title: str) -> None:
    """What is shown, once for the whole column, and one scale for all its panels if that is legible."""
    for axes, top in zip(panels, _scales([axes.dataLim.y1 for axes in panels]), strict=True):
        axes.set_ylim(0, top * 1.05)
        axes.yaxis.set_major_formatter(
            PercentFormatter(xmax=1) if _PANELS[title] == "kv_share" else StrMethodFormatter("{x:,g}")
        )
    panels[0].set_title(title, fontweight="bold")
    panels[-1].set_xlabel("simulated time (s)")
    panels[-1].tick_params(labelbottom=True)


def _scales(highest: Sequence[float]) -> list[float]:
    """The end of each run's axis: the same for all, unless some would then be too small to read."""
    ends = [value if value > 0 else 1.0 for value in highest]
    is_shared = max(ends, default=1.0) <= MAX_SPREAD * min(ends, default=1.0)
    return [max(ends)] * len(ends) if is_shared else ends


def bin_steps(start_s: Column, duration_s: Column, values: Column, edges_s: Column) -> tuple[Column, Column]:
    """Time-weighted mean and maximum, per bin, of what holds during each step; 0 where no step is under way.

    Steps are of one replica, in order, so that they don't overlap; values are not negative; all times are in
    seconds. Means are exact integrals over the bin, however many steps lie in it or reach across its edges.
    """
    num_bins = len(edges_s) - 1
    if not len(start_s):
        return np.zeros(num_bins), np.zeros(num_bins)
    end_s = start_s + duration_s
    area = np.cumsum(values * duration_s)
    instants = np.column_stack([start_s, end_s]).ravel()
    area_by_then = np.column_stack([np.concatenate([[0.0], area[:-1]]), area]).ravel()
    mean = np.diff(np.interp(edges_s, np.maximum.accumulate(instants), area_by_then)) / np.diff(edges_s)
    first = np.searchsorted(start_s, edges_s)
    begun = np.maximum.reduceat(np.append(values, 0.0), first)[:-1]
    highest = np.where(first[1:] > first[:-1], begun, 0.0)
    under_way = np.maximum(first[:-1] - 1, 0)
    reaches_in = (first[:-1] > 0) & (end_s[under_way] > edges_s[:-1])
    return mean, np.maximum(highest, np.where(reaches_in, values[under_way], 0.0))


def _draw(axes: Axes, steps: pd.DataFrame, column: str, edges_s: Column, color: str) -> None:
    """Several replicas are added up (KV use: averaged), bandless: their highest steps don't coincide."""
    replicas = [frame for _, frame in steps.groupby("replica")]
    binned = [bin_steps(*_step_values(frame, column), edges_s) for frame in replicas]
    mean = np.sum([mean for mean, _ in binned], axis=0) if binned else np.zeros(len(edges_s) - 1)
    if column == "kv_share":
        mean = mean / max(1, len(replicas))
    if len(binned) == 1:
        axes.stairs(binned[0][1], edges_s, fill=True, color=color, alpha=0.22, linewidth=0)
    axes.stairs(mean, edges_s, color=color, linewidth=0.9, baseline=None)


def _step_values(steps: pd.DataFrame, column: str) -> tuple[Column, Column, Column]:
    if column == "kv_share":
        values = steps["kv_blocks_used"].to_numpy() / steps["kv_blocks_total"].to_numpy()
    else:
        values = steps[column].to_numpy(np.float64)
    return steps["start_s"].to_numpy(), steps["duration_s"].to_numpy(), values


def _end_s(steps: pd.DataFrame) -> float:
    return float((steps["start_s"] + steps["duration_s"]).max()) if len(steps) else 0.0
