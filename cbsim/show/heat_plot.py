"""Heat maps: figures of a sweep over two swept settings, the best cell of each marked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.patches import Rectangle

from cbsim.results.run_log import Column
from cbsim.show.figures import GOODPUT, ITL, SAME, TTFT, PicturedFigure
from cbsim.show.style import PALETTE, head, new_figure, styled
from cbsim.show.text import format_figure
from cbsim.studies.labels import short_keys

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DEFAULT_FIGURES = (GOODPUT, TTFT, ITL)
_COLORS = "cividis"
"""Made for colour-blind readers (Nunez, Anderton and Renslow, PLOS ONE 13(7), 2018)."""
_LEAST_SPAN = 0.1
"""Of the best value: so far apart are values in full contrast, at least."""
_ON_BRIGHT = "#111111"
_WIDE = 10
"""Values that span more than this factor get a logarithmic colour scale."""


def heat_maps(
    table: pd.DataFrame,
    x: str,
    y: str,
    title: str,
    figures: Sequence[PicturedFigure] = DEFAULT_FIGURES,
    caption: str = "",
) -> Figure:
    """A map for each figure over the swept settings `x` and `y` of a table with one row a cell.

    Brighter is better, frames mark the best cell and those within `SAME` of it, and cells that were not run
    are left empty.
    """
    with styled():
        figure = new_figure(11, 1.6 + 0.5 * max(3, table[y].nunique()))
        panels = figure.subplots(1, len(figures), squeeze=False)[0]
        for axes, shown in zip(panels, figures, strict=True):
            cells = table.pivot(index=y, columns=x, values=shown.column).sort_index().sort_index(axis=1)
            _draw(axes, cells, shown)
            axes.set(title=shown.label, xlabel=_short(x), ylabel=_short(y))
        framed = f"framed: the best, and what is within {SAME * 100:g}% of it"
        note = f"Brighter is better; {framed}; empty: not run."
        head(figure, title, f"{caption} {note}".strip())
    return figure


def _draw(axes: Axes, cells: pd.DataFrame, shown: PicturedFigure) -> None:
    values: Column = cells.to_numpy(np.float64, na_value=np.nan) * shown.scale
    known = values[~np.isnan(values)]
    is_wide = len(known) > 0 and known.min() > 0 and known.max() > _WIDE * known.min()
    colors = _COLORS if shown.better == "higher" else f"{_COLORS}_r"
    norm: dict[str, Any] = {"norm": LogNorm()} if is_wide else _plain_scale(known, shown)
    mesh = axes.pcolormesh(np.ma.masked_invalid(values), cmap=colors, edgecolor="white", linewidth=1, **norm)
    axes.set_xticks(np.arange(len(cells.columns)) + 0.5, [_tick(value) for value in cells.columns])
    axes.set_yticks(np.arange(len(cells.index)) + 0.5, [_tick(value) for value in cells.index])
    axes.tick_params(length=0)
    axes.grid(False)
    for (row, column), value in np.ndenumerate(values):
        if np.isnan(value):
            continue
        red, green, blue, _ = mesh.cmap(mesh.norm(value))
        is_dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
        axes.text(
            column + 0.5,
            row + 0.5,
            format_figure(float(value)),
            ha="center",
            va="center",
            fontsize=8,
            color="white" if is_dark else _ON_BRIGHT,
        )
    if len(known):
        best = known.max() if shown.better == "higher" else known.min()
        for row, column in np.argwhere(np.abs(values - best) <= SAME * abs(best)).tolist():
            frame: dict[str, Any] = {"edgecolor": PALETTE[1], "linewidth": 2.5, "zorder": 3, "clip_on": False}
            axes.add_patch(Rectangle((column, row), 1, 1, fill=False, **frame))


def _plain_scale(known: Column, shown: PicturedFigure) -> dict[str, float]:
    """From the worst to the best; where these hardly differ, colours hardly do."""
    if not len(known):
        return {}
    low, high = float(known.min()), float(known.max())
    if shown.better == "higher":
        return {"vmin": min(low, high - _LEAST_SPAN * abs(high)), "vmax": high}
    return {"vmin": low, "vmax": max(high, low + _LEAST_SPAN * abs(low))}


def _short(key: str) -> str:
    return short_keys([key])[key]


def _tick(value: Any) -> str:
    return f"{value:,.15g}" if isinstance(value, int | float | np.number) else str(value)
