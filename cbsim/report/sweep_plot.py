"""A sweep as curves: how figures of the summary change along one axis, a curve for each value of another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.ticker import NullLocator, PercentFormatter

from cbsim.report.style import head, line_style, new_figure, styled
from cbsim.units import MS_PER_S

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TITLES = {
    "goodput_per_s": "goodput (requests/s within SLO)",
    "output_token_throughput_per_s": "output tokens/s",
    "prefix_hit_rate": "prompt tokens found in the prefix cache",
    "slo_attainment": "requests within SLO",
}
_IN_MS = ("itl_s", "tpot_s")
_SHARES = ("prefix_hit_rate", "slo_attainment")


def sweep_curves(
    table: pd.DataFrame, x: str, series: str, columns: Sequence[str], title: str, caption: str = ""
) -> Figure:
    """A panel for each of `columns` (of a sweep's table, as `ttft_s.p99`), along the swept setting `x`.

    The values of `x`, all positive, are evenly spaced if they double from one to the next.
    """
    with styled():
        figure = new_figure(11, 3.6)
        panels = figure.subplots(1, len(columns), squeeze=False)[0]
        for axes, column in zip(panels, columns, strict=True):
            for place, (value, points) in enumerate(table.groupby(series, sort=False)):
                values = points.sort_values(x)
                scale = MS_PER_S if column.split(".")[0] in _IN_MS else 1
                curve = values[column] * scale
                label = f"{series.split('.')[-1]}: {_plain(value)}"
                axes.plot(values[x], curve, marker="o", markersize=4, label=label, **line_style(place))
            _finish(axes, sorted(table[x].unique()), x, column)
        head(figure, title, caption, panels[0])
    return figure


def _finish(axes: Axes, xs: list[float], x: str, column: str) -> None:
    axes.set(title=_title(column), xlabel=x.split(".")[-1])
    axes.set_xscale("log", base=2)
    axes.set_xticks(xs, [f"{value:,.15g}" for value in xs])
    axes.xaxis.set_minor_locator(NullLocator())
    _, highest = axes.get_ylim()
    axes.set_ylim(0, highest)
    if column in _SHARES:
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))


def _title(column: str) -> str:
    if column in _TITLES:
        return _TITLES[column]
    name, _, statistic = column.partition(".")
    unit = "ms" if name in _IN_MS else "s"
    return f"{name.removesuffix('_s').upper()} {statistic} ({unit})"


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool | np.bool_) else str(value)
