"""Predicted against measured seconds, and the error by size: of kernels, and of runs of real servers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter

from cbsim.base.units import MS_PER_S
from cbsim.results.run_log import Column
from cbsim.show.style import FAINT, INK, drawing, head, line_style, show_plain

ERROR_BAND, ERROR_LIMIT = 0.05, 0.4
"""Of kernels: half the width of the band drawn round no error; larger errors are drawn at the edge."""
SERVED_BAND, SERVED_LIMIT = 0.1, 0.5
"""The same of served runs."""
SPREAD = 1.05
"""Factor by which points of one concurrency stand apart, a step for each degree of tensor parallelism."""
TICKS_MS = (3, 5, 10, 20, 50, 100, 200)


class Predictions(NamedTuple):
    """Predictions of one kind of thing: three columns of equal length."""

    size: Column
    """What it is large in, > 0."""
    predicted_s: Column
    measured_s: Column


class ServedSeries(NamedTuple):
    """Runs of one model on one server: columns of equal length, at least one row."""

    name: str
    tensor_parallel: Column
    concurrency: Column
    predicted_s: Column
    measured_s: Column


def calibration_picture(kinds: Mapping[str, Predictions], title: str, caption: str) -> Figure:
    """Two panels, one colour a kind: predicted over measured seconds, and the relative error over size."""
    with drawing(11, 4.6) as figure:
        against, by_size = figure.subplots(1, 2)
        for place, (label, kind) in enumerate(kinds.items()):
            style = {"color": line_style(place)["color"], "markersize": 5}
            against.plot(kind.measured_s, kind.predicted_s, ".", label=label, **style)
            by_size.plot(kind.size, _errors(kind, ERROR_LIMIT), ".", **style)
        against.set(xscale="log", yscale="log", xlabel="measured (s)", ylabel="predicted (s)")
        seconds = np.concatenate([kind.measured_s for kind in kinds.values()])
        ends = [float(seconds.min()), float(seconds.max())]
        against.plot(ends, ends, color=INK, linewidth=0.8, zorder=0)
        _draw_no_error(by_size, ERROR_BAND, ERROR_LIMIT)
        by_size.set(xscale="log", xlabel="size: tokens, rows, or query-key pairs", ylabel="error")
        head(figure, title, caption, against)
    return figure


def served_picture(series: Sequence[ServedSeries], title: str, caption: str) -> Figure:
    """A column of two panels for each series, one colour for each degree of tensor parallelism."""
    degrees = sorted({int(degree) for each in series for degree in each.tensor_parallel})
    colors = {degree: line_style(place)["color"] for place, degree in enumerate(degrees)}
    with drawing(3.9 * len(series), 7) as figure:
        panels = figure.subplots(2, len(series), squeeze=False)
        for degree, color in colors.items():
            panels[0, 0].plot([], [], ".", color=color, label=f"TP {degree}", markersize=8)
        for each, (against, by_concurrency) in zip(series, panels.T, strict=True):
            _draw_against(against, each, colors)
            _draw_errors(by_concurrency, each, colors)
        panels[0, 0].set_ylabel("predicted TPOT (ms)")
        panels[1, 0].set_ylabel("error")
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
    _draw_no_error(axes, SERVED_BAND, SERVED_LIMIT)
    error = _errors(series, SERVED_LIMIT)
    for place, (degree, color) in enumerate(colors.items()):
        is_here = series.tensor_parallel == degree
        at = series.concurrency[is_here] * SPREAD ** (place - (len(colors) - 1) / 2)
        axes.plot(at, error[is_here], ".", color=color, markersize=5)
    axes.set(xscale="log", xlabel="clients")
    axes.xaxis.set_ticks(np.unique(series.concurrency))
    show_plain(axes.xaxis)
    axes.xaxis.set_minor_locator(NullLocator())


def _errors(of: Predictions | ServedSeries, limit: float) -> Column:
    """The relative errors of predictions, larger ones cut to the limit."""
    error: Column = np.clip(of.predicted_s / of.measured_s - 1.0, -limit, limit)
    return error


def _draw_no_error(axes: Axes, band: float, limit: float) -> None:
    """The line where predictions are right, with a band, on an axis of errors up to a limit."""
    axes.axhspan(-band, band, color=FAINT, alpha=0.3, linewidth=0)
    axes.axhline(0.0, color=INK, linewidth=0.8, zorder=0)
    axes.set_ylim(-limit * 1.05, limit * 1.05)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
