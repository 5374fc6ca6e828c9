"""The picture of served runs: predicted against measured latencies, and the error by concurrency."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator, PercentFormatter

from cbsim.base.units import MS_PER_S
from cbsim.results.run_log import Column
from cbsim.show.style import FAINT, INK, head, line_style, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ERROR_BAND = 0.1
"""Half the width of the band drawn round no error."""
ERROR_LIMIT = 0.5
"""Larger errors are drawn at the edge."""
SPREAD = 1.05
"""Factor by which points of one concurrency stand apart, a step for each degree of tensor parallelism."""
TICKS_MS = (3, 5, 10, 20, 50, 100, 200)


class ServedSeries(NamedTuple):
    """Runs of one model on one server: columns of equal length, at least one row."""

    name: str
    tensor_parallel: Column
    concurrency: Column
    predicted_s: Column
    measured_s: Column


def served_picture(series: Sequence[ServedSeries], title: str, caption: str) -> Figure:
    """A column of two panels for each series, one colour for each degree of tensor parallelism."""
    degrees = sorted({int(degree) for each in series for degree in each.tensor_parallel})
    colors = {degree: line_style(place)["color"] for place, degree in enumerate(degrees)}
    with styled():
        figure = new_figure(3.9 * len(series), 7)
        panels = figure.subplots(2, len(series), squeeze=False)
        for degree, color in colors.items():
            panels[0, 0].plot([], [], ".", color=color, label=f"TP {degree}", markersize=8)
        for place, each in enumerate(series):
            against, by_concurrency = panels[:, place]
            _draw_against(against, each, colors)
            _draw_errors(by_concurrency, each, colors)
        panels[0, 0].set_ylabel("predicted TPOT (ms)")
        panels[1, 0].set_ylabel("error")
        head(figure, title, caption, panels[0, 0])
    return figure


def _draw_against(axes: Axes, series: ServedSeries, colors: dict[int, str]) -> None:
    seconds = np.concatenate([series.measured_s, series.predicted_s]) * MS_PER_S
    ends = np.array([seconds.min() * 0.9, seconds.max() * 1.1])
    axes.plot(ends, ends, color=INK, linewidth=0.8, zorder=0)
    axes.fill_between(ends, ends * (1 - ERROR_BAND), ends * (1 + ERROR_BAND), color=FAINT, alpha=0.3, lw=0)
    for degree, color in colors.items():
        is_here = series.tensor_parallel == degree
        measured, predicted = series.measured_s[is_here], series.predicted_s[is_here]
        axes.plot(measured * MS_PER_S, predicted * MS_PER_S, ".", color=color, markersize=5)
    axes.set(xscale="log", yscale="log", xlabel="measured TPOT (ms)", title=series.name)
    axes.set(xlim=ends, ylim=ends, aspect="equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks([tick for tick in TICKS_MS if ends[0] <= tick <= ends[1]])
        axis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))
        axis.set_minor_formatter(NullFormatter())


def _draw_errors(axes: Axes, series: ServedSeries, colors: dict[int, str]) -> None:
    axes.axhspan(-ERROR_BAND, ERROR_BAND, color=FAINT, alpha=0.3, linewidth=0)
    axes.axhline(0.0, color=INK, linewidth=0.8, zorder=0)
    error = np.clip(series.predicted_s / series.measured_s - 1.0, -ERROR_LIMIT, ERROR_LIMIT)
    middle = (len(colors) - 1) / 2
    for place, (degree, color) in enumerate(colors.items()):
        is_here = series.tensor_parallel == degree
        at = series.concurrency[is_here] * SPREAD ** (place - middle)
        axes.plot(at, error[is_here], ".", color=color, markersize=5)
    axes.set(xscale="log", xlabel="clients")
    axes.xaxis.set_ticks(np.unique(series.concurrency))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(-ERROR_LIMIT * 1.05, ERROR_LIMIT * 1.05)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
