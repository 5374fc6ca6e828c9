"""The calibration picture: predicted against measured seconds, and the error by size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from matplotlib.ticker import PercentFormatter

from cbsim.results.run_log import Column
from cbsim.show.style import FAINT, INK, head, line_style, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ERROR_BAND = 0.05
"""Half the width of the band drawn round no error."""
ERROR_LIMIT = 0.4
"""Larger errors are drawn at the edge."""


class Predictions(NamedTuple):
    """Predictions of one kind of thing: three columns of equal length."""

    size: Column
    """What it is large in, > 0."""
    predicted_s: Column
    measured_s: Column


def calibration_picture(kinds: Mapping[str, Predictions], title: str, caption: str) -> Figure:
    """Two panels, one colour a kind: predicted over measured seconds, and the relative error over size."""
    with styled():
        figure = new_figure(11, 4.6)
        against, by_size = figure.subplots(1, 2)
        for place, (label, kind) in enumerate(kinds.items()):
            color = line_style(place)["color"]
            error = kind.predicted_s / kind.measured_s - 1.0
            against.plot(kind.measured_s, kind.predicted_s, ".", color=color, label=label, markersize=5)
            shown = np.clip(error, -ERROR_LIMIT, ERROR_LIMIT)
            by_size.plot(kind.size, shown, ".", color=color, markersize=5)
        against.set(xscale="log", yscale="log", xlabel="measured (s)", ylabel="predicted (s)")
        seconds = np.concatenate([kind.measured_s for kind in kinds.values()])
        ends = [float(seconds.min()), float(seconds.max())]
        against.plot(ends, ends, color=INK, linewidth=0.8, zorder=0)
        by_size.axhspan(-ERROR_BAND, ERROR_BAND, color=FAINT, alpha=0.3, linewidth=0)
        by_size.axhline(0.0, color=INK, linewidth=0.8, zorder=0)
        by_size.set(xscale="log", xlabel="size: tokens, rows, or query-key pairs", ylabel="error")
        by_size.set_ylim(-ERROR_LIMIT * 1.05, ERROR_LIMIT * 1.05)
        by_size.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
        head(figure, title, caption, against)
    return figure
