"""MFU and MBU over simulated time, a row a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import PercentFormatter

from cbsim.results.result import Result
from cbsim.results.run_log import Column
from cbsim.show.style import PALETTE, head, new_figure, styled
from cbsim.show.timeline_plot import NUM_BINS, bin_steps
from cbsim.show.utilization import has_utilization, step_mbu, step_mfu

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ShareOfSteps = Callable[[Result, "pd.DataFrame"], Column]

_SHARES: dict[str, ShareOfSteps] = {
    "MFU: share of peak FLOP/s": step_mfu,
    "MBU: share of peak memory bandwidth": step_mbu,
}


def utilization(results: Mapping[str, Result]) -> Figure:
    """Panels over simulated time for the runs that say enough of their steps; replicas are averaged."""
    shown = {label: result for label, result in results.items() if has_utilization(result)}
    with styled():
        figure = new_figure(11, 1.4 + 1.7 * max(1, len(shown)))
        panels = figure.subplots(max(1, len(shown)), len(_SHARES), squeeze=False)
        for row, (label, result) in zip(panels, shown.items(), strict=False):
            for axes, share, color in zip(row, _SHARES.values(), (PALETTE[0], PALETTE[1]), strict=True):
                _draw(axes, result, share, color)
            row[0].set_ylabel(label, fontsize=10, fontweight="bold")
        for column, title in zip(panels.T, _SHARES, strict=True):
            top = max(axes.dataLim.y1 for axes in column)
            for axes in column:
                axes.set_ylim(0, top * 1.1 if top > 0 else 1)
                axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
            column[0].set_title(title, fontweight="bold")
            column[-1].set_xlabel("simulated time (s)")
        caption = f"Mean over 1/{NUM_BINS} of the time, idle time as 0. Dashed: mean over the run."
        head(figure, "What the GPUs do over time", caption)
    return figure


def _draw(axes: Axes, result: Result, share: ShareOfSteps, color: str) -> None:
    steps = result.steps
    if not len(steps):
        return
    end_s = float((steps["start_s"] + steps["duration_s"]).max())
    edges_s = np.linspace(0, end_s, NUM_BINS + 1)
    means = []
    for _, frame in steps.groupby("replica"):
        values = share(result, frame)
        mean, _ = bin_steps(frame["start_s"].to_numpy(), frame["duration_s"].to_numpy(), values, edges_s)
        means.append(mean)
    average = np.mean(means, axis=0)
    axes.stairs(average, edges_s, color=color, linewidth=0.9, baseline=None)
    axes.axhline(float(average.mean()), color=color, linewidth=0.9, linestyle="--")
    axes.set_xlim(0, end_s)
