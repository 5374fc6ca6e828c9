"""Predicted against measured TPOT of real servers, and the error by concurrency."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from cbsim.base.units import MS_PER_S
from cbsim.results.run_log import Column
from cbsim.show.lab_plot import draw_no_error, errors
from cbsim.show.style import FAINT, INK, drawing, head, line_style, show_plain

SERVED_BAND, SERVED_LIMIT = 0.1, 0.5
"""Half the width of the band drawn round no error; larger errors are drawn at the edge."""
SPREAD = 1.05
"""Factor by which points of one concurrency stand apart, a step for each degree of tensor parallelism."""
TICKS_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500)
MOST_COLUMNS = 4
"""Series of served runs beside each other; further ones go below."""
MOST_TICKS = 6
"""Labels of numbers of clients; with more numbers than that, powers of 4 stand for them."""


class ServedSeries(NamedTuple):
    """Runs of one model on one server: columns of equal length, at least one row."""

    name: str
    tensor_parallel: Column
    concurrency: Column
    predicted_s: Column
    measured_s: Column


def served_picture(series: Sequence[ServedSeries], title: str, caption: str) -> Figure:
    """Two panels for each series, one above the other, one colour for each number of GPUs."""
    degrees = sorted({int(degree) for each in series for degree in each.tensor_parallel})
    colors = {degree: line_style(place)["color"] for place, degree in enumerate(degrees)}
    num_columns = min(len(series), MOST_COLUMNS)
    num_bands = -(-len(series) // num_columns)
    with drawing(3.9 * num_columns, 7 * num_bands) as figure:
        panels = figure.subplots(2 * num_bands, num_columns, squeeze=False)
        pairs = [pair for band in range(num_bands) for pair in panels[2 * band : 2 * band + 2].T]
        for degree, color in colors.items():
            panels[0, 0].plot([], [], ".", color=color, label=f"TP {degree}", markersize=8)
        for each, (against, by_concurrency) in zip(series, pairs, strict=False):
            _draw_against(against, each, colors)
            _draw_errors(by_concurrency, each, colors)
        for unused in pairs[len(series) :]:
            for axes in unused:
                axes.set_visible(False)
        for band in range(num_bands):
            panels[2 * band, 0].set_ylabel("predicted TPOT (ms)")
            panels[2 * band + 1, 0].set_ylabel("error")
        head(figure, title, caption, panels[0, 0])
    return figure


def _draw_against(axes: Axes, series: ServedSeries, colors: dict[int, str]) -> None:
    measured, predicted = series.measured_s * MS_PER_S, series.predicted_s * MS_PER_S
    low, high = min(measured.min(), predicted.min()), max(measured.max(), predicted.max())
    ends = np.array([low * 0.9, high * 1.1])
    axes.plot(ends, ends, color=INK, linewidth=0.8, zorder=0)
    band = (ends * (1 - SERVED_BAND), ends * (1 + SERVED_BAND))
    axes.fill_between(ends, *band, color=FAINT, alpha=0.3, lw=0)
    for degree, color in colors.items():
        is_here = series.tensor_parallel == degree
        axes.plot(measured[is_here], predicted[is_here], ".", color=color, markersize=5)
    axes.set(xscale="log", yscale="log", xlabel="measured TPOT (ms)", title=series.name)
    axes.set(xlim=ends, ylim=ends, aspect="equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks([tick for tick in TICKS_MS if ends[0] <= tick <= ends[1]])
        show_plain(axis)


def _draw_errors(axes: Axes, series: ServedSeries, colors: dict[int, str]) -> None:
    draw_no_error(axes, SERVED_BAND, SERVED_LIMIT)
    error = errors(series.predicted_s, series.measured_s, SERVED_LIMIT)
    for place, (degree, color) in enumerate(colors.items()):
        is_here = series.tensor_parallel == degree
        at = series.concurrency[is_here] * SPREAD ** (place - (len(colors) - 1) / 2)
        axes.plot(at, error[is_here], ".", color=color, markersize=5)
    axes.set(xscale="log", xlabel="clients")
    numbers = np.unique(series.concurrency)
    if len(numbers) > MOST_TICKS:
        powers = 4.0 ** np.arange(8)
        numbers = powers[(powers >= numbers[0]) & (powers <= numbers[-1])]
    axes.xaxis.set_ticks(numbers)
    show_plain(axes.xaxis)
    axes.xaxis.set_minor_locator(NullLocator())
