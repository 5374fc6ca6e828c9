"""A sweep as curves: how figures of the summary change along one axis, a curve for each value of another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.ticker import NullLocator, PercentFormatter

from cbsim.base.units import MS_PER_S
from cbsim.show.style import head, line_style, new_figure, styled
from cbsim.studies.labels import point_name, short_keys

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
_WIDTH_IN, _MARGIN_IN = 11, 0.6
_CHARACTER_IN = 0.09
"""Of a tick's label, with its share of the space between two."""


def sweep_curves(
    table: pd.DataFrame, x: str, series: str, columns: Sequence[str], title: str, caption: str = ""
) -> Figure:
    """A panel for each of `columns` (of a sweep's table, as `ttft_s.p99`), along the swept setting `x`.

    The values of `x`, all positive, are evenly spaced if they double from one to the next.
    """
    with styled():
        figure = new_figure(_WIDTH_IN, 3.6)
        panels = figure.subplots(1, len(columns), squeeze=False)[0]
        for axes, column in zip(panels, columns, strict=True):
            for place, (value, points) in enumerate(table.groupby(series, sort=False)):
                values = points.sort_values(x)
                scale = MS_PER_S if column.split(".")[0] in _IN_MS else 1
                curve = values[column] * scale
                label = point_name({series: value}, [series])
                axes.plot(values[x], curve, marker="o", markersize=4, label=label, **line_style(place))
            _finish(axes, sorted(table[x].unique()), x, column, _WIDTH_IN / len(columns) - _MARGIN_IN)
        head(figure, title, caption, panels[0])
    return figure


def _finish(axes: Axes, xs: list[float], x: str, column: str, width_in: float) -> None:
    axes.set(title=_title(column), xlabel=short_keys([x])[x])
    axes.set_xscale("log", base=2)
    labels = [f"{value:,.15g}" for value in xs]
    is_crowded = any(
        math.log2(high / low) / math.log2(xs[-1] / xs[0]) * width_in < len(label) * _CHARACTER_IN
        for low, high, label in zip(xs, xs[1:], labels[1:], strict=False)
    )
    axes.set_xticks(xs, labels)
    if is_crowded:
        axes.tick_params(axis="x", labelrotation=40)
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
