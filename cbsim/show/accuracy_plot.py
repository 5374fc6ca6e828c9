"""Predicted against measured seconds of kernels, and the error by size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from cbsim.results.run_log import Column
from cbsim.show.style import FAINT, INK, drawing, head, line_style

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
