"""Heat maps: figures of a sweep over two swept settings, the best cell of each marked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cbsim.results.run_log import Column
from cbsim.show.figures import GOODPUT, ITL, SAME, TTFT, SummaryFigure
from cbsim.show.style import PALETTE, drawing, head
from cbsim.show.text import format_figure
from cbsim.studies.labels import short_keys

FIGURES = (GOODPUT, TTFT, ITL)
_COLORS = "cividis"
"""Made for colour-blind readers (Nunez, Anderton and Renslow, PLOS ONE 13(7), 2018)."""
_LEAST_SPAN = 0.1
"""Of the best value: so far apart are values in full contrast, at least."""
_ON_BRIGHT = "#111111"
_WIDE = 10
"""Values that span more than this factor get a logarithmic colour scale."""


def heat_maps(table: pd.DataFrame, x: str, y: str, title: str) -> Figure:
    """A map for each of `FIGURES` over the swept settings `x` and `y` of a table with one row a cell.

    Brighter is better, frames mark the best cell and those within `SAME` of it, and cells that were not run
    are left empty.
    """
    with drawing(11, 1.6 + 0.5 * max(3, table[y].nunique())) as figure:
        panels = figure.subplots(1, len(FIGURES), squeeze=False)[0]
        for axes, shown in zip(panels, FIGURES, strict=True):
            cells = table.pivot(index=y, columns=x, values=shown.key).sort_index().sort_index(axis=1)
            _draw(axes, cells, shown)
            axes.set(title=shown.title, xlabel=short_keys([x])[x], ylabel=short_keys([y])[y])
        framed = f"framed: the best, and what is within {SAME * 100:g}% of it"
        head(figure, title, f"Brighter is better; {framed}; empty: not run.")
    return figure


def _draw(axes: Axes, cells: pd.DataFrame, shown: SummaryFigure) -> None:
    assert shown.better is not None
    values: Column = cells.to_numpy(np.float64, na_value=np.nan) * shown.scale
    known = values[~np.isnan(values)].tolist()
    colors = _COLORS if shown.better is max else f"{_COLORS}_r"
    style: dict[str, Any] = {"cmap": colors, "edgecolor": "white", "linewidth": 1}
    mesh = axes.pcolormesh(np.ma.masked_invalid(values), norm=_color_scale(known, shown), **style)
    axes.set_xticks(np.arange(len(cells.columns)) + 0.5, [_tick(value) for value in cells.columns])
    axes.set_yticks(np.arange(len(cells.index)) + 0.5, [_tick(value) for value in cells.index])
    axes.tick_params(length=0)
    axes.grid(False)
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            red, green, blue, _ = mesh.cmap(mesh.norm(value))
            color = "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 else _ON_BRIGHT
            middle: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8}
            axes.text(column + 0.5, row + 0.5, format_figure(float(value)), color=color, **middle)
    best = shown.better(known) if known else np.nan
    for row, column in np.argwhere(np.abs(values - best) <= SAME * abs(best)).tolist():
        frame: dict[str, Any] = {"edgecolor": PALETTE[1], "linewidth": 2.5, "zorder": 3, "clip_on": False}
        axes.add_patch(Rectangle((column, row), 1, 1, fill=False, **frame))


def _color_scale(known: list[float], shown: SummaryFigure) -> Normalize | None:
    """From the worst to the best, logarithmic if wide; where these hardly differ, colours hardly do."""
    if not known:
        return None
    low, high = min(known), max(known)
    if low > 0 and high > _WIDE * low:
        return LogNorm()
    if shown.better is max:
        return Normalize(min(low, high - _LEAST_SPAN * abs(high)), high)
    return Normalize(low, max(high, low + _LEAST_SPAN * abs(low)))


def _tick(value: Any) -> str:
    return f"{value:,.15g}" if isinstance(value, int | float | np.number) else str(value)
