"""What the lab finds: predicted against measured seconds of kernels, and what simulating costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, PercentFormatter

from cbsim.base.units import MEGA, US_PER_S, format_count
from cbsim.results.run_log import Column
from cbsim.show.style import FAINT, INK, PALETTE, drawing, head, label, line_style
from cbsim.show.text import format_figure

ERROR_BAND, ERROR_LIMIT = 0.05, 0.4
"""Half the width of the band drawn round no error; larger errors are drawn at the edge."""


class Predictions(NamedTuple):
    """Predictions of one kind of thing: three columns of equal length."""

    size: Column
    """What it is large in, > 0."""
    predicted_s: Column
    measured_s: Column


def calibration_picture(kinds: Mapping[str, Predictions], title: str, caption: str) -> Figure:
    """Two panels, one colour a kind: predicted over measured seconds, and the relative error over size."""
    with drawing(11, 4.6) as figure:
        against, by_size = figure.subplots(1, 2)
        for place, (label, kind) in enumerate(kinds.items()):
            style = {"color": line_style(place)["color"], "markersize": 5}
            against.plot(kind.measured_s, kind.predicted_s, ".", label=label, **style)
            by_size.plot(kind.size, errors(kind.predicted_s, kind.measured_s, ERROR_LIMIT), ".", **style)
        against.set(xscale="log", yscale="log", xlabel="measured (s)", ylabel="predicted (s)")
        seconds = np.concatenate([kind.measured_s for kind in kinds.values()])
        ends = [float(seconds.min()), float(seconds.max())]
        against.plot(ends, ends, color=INK, linewidth=0.8, zorder=0)
        draw_no_error(by_size, ERROR_BAND, ERROR_LIMIT)
        by_size.set(xscale="log", xlabel="size: tokens, rows, or query-key pairs", ylabel="error")
        head(figure, title, caption, against)
    return figure


def errors(predicted_s: Column, measured_s: Column, limit: float) -> Column:
    """The relative errors of predictions, larger ones cut to the limit."""
    error: Column = np.clip(predicted_s / measured_s - 1.0, -limit, limit)
    return error


def draw_no_error(axes: Axes, band: float, limit: float) -> None:
    """The line where predictions are right, with a band, on an axis of errors up to a limit."""
    axes.axhspan(-band, band, color=FAINT, alpha=0.3, linewidth=0)
    axes.axhline(0.0, color=INK, linewidth=0.8, zorder=0)
    axes.set_ylim(-limit * 1.05, limit * 1.05)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))


AXES = {"requests": "requests", "running": "running at once (max_num_seqs)", "replicas": "replicas"}
"""What may be varied: the values of the column `varied`, and what the picture calls them."""

_HEADROOM = 1.4
"""Above the highest point, for its label."""


def scaling_picture(table: pd.DataFrame, title: str, caption: str = "") -> Figure:
    """A column a varied quantity, both axes logarithmic: CPU time of a request on top, peak memory below.

    `table` has the columns `varied`, `value`, `s_per_request`, `bare_simpy_s`, `num_requests` and
    `peak_bytes`; rows without figures are left out. Panels of a row have the same scale.
    """
    known = table.dropna(subset=["s_per_request"])
    found = [axis for axis in AXES if (known["varied"] == axis).any()]
    with drawing(3.2 + 2.9 * len(found), 6.4) as figure:
        panels = figure.subplots(2, len(found), sharex="col", sharey="row", squeeze=False)
        for place, axis in enumerate(found):
            cost, memory = panels[:, place]
            points = known[known["varied"] == axis].sort_values("value")
            _curve(cost, points["value"], points["s_per_request"] * US_PER_S, PALETTE[0], "cbsim")
            bare = points["bare_simpy_s"] / points["num_requests"] * US_PER_S
            _curve(cost, points["value"], bare, FAINT, "bare SimPy, as many events as steps")
            _curve(memory, points["value"], points["peak_bytes"] / MEGA, PALETTE[1], "peak memory")
            memory.set_xlabel(AXES[axis])
            memory.set_xticks(points["value"], [format_count(value) for value in points["value"]])
            memory.xaxis.set_minor_formatter(NullFormatter())
        for axes, told in zip(panels[:, 0], ("CPU us a request", "peak memory (MB)"), strict=True):
            axes.set_ylabel(told)
            _whole_decades(axes)
        head(figure, title, caption, panels[0, 0])
    return figure


def _curve(axes: Axes, x: pd.Series[float], y: pd.Series[float], color: str, name: str) -> None:
    """A line whose points are told by their values."""
    axes.loglog(x, y, marker="o", markersize=4, color=color, label=name)
    for at, value in zip(x, y, strict=True):
        label(axes, format_figure(float(value)), (at, value))
    axes.margins(x=0.12)


def _whole_decades(axes: Axes) -> None:
    """A logarithmic scale of plain numbers, wide enough that noise doesn't look like growth."""
    low, high = axes.get_ylim()
    axes.set_ylim(10 ** np.floor(np.log10(low)), 10 ** np.ceil(np.log10(high * _HEADROOM)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_figure(value, digits=1)))
    axes.yaxis.set_minor_formatter(NullFormatter())
