"""The pictures that suit a sweep: what its settings do, and which points no other beats."""

from __future__ import annotations

from collections.abc import Sequence
from math import log2

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from cbsim.show.capacity_plot import OFFERED, rate_panels
from cbsim.show.chapter import Picture
from cbsim.show.figures import GOODPUT, SummaryFigure, latency
from cbsim.show.heat_plot import heat_maps
from cbsim.show.pareto_plot import pareto_picture
from cbsim.show.style import drawing, head, line_style, show_percent
from cbsim.show.sweep_points import Sweep
from cbsim.studies.labels import point_name, short_keys

RATE_KEYS = {
    "workload.rate_scale": "rate_scale: times the workload's rate",
    "workload.arrivals.rate_per_s": OFFERED,
}
_CURVES = ("ttft_s.p99", "itl_s.p99", "goodput_per_s")
_FIGURES = {
    "goodput_per_s": GOODPUT,
    "output_token_throughput_per_s": SummaryFigure("output_token_throughput_per_s", "output tokens/s"),
    "prefix_hit_rate": SummaryFigure("prefix_hit_rate", "prompt tokens found in the prefix cache"),
    "slo_attainment": SummaryFigure("slo_attainment", "requests within SLO"),
}
_SHARES = ("prefix_hit_rate", "slo_attainment")
_MIN_POINTS = 3
"""Fewer points have no front."""
_WIDTH_IN, _MARGIN_IN = 11, 0.6
_CHARACTER_IN = 0.09
"""Of a tick's label, with its share of the space between two."""


def sweep_pictures(sweep: Sweep, name: str) -> dict[str, Picture]:
    """Pictures by the names of their files: along a rate, over two settings or along one, and the front."""
    pictures = {}
    settings = _of_settings(sweep, name)
    if settings is not None:
        pictures["settings"] = settings
    if len(sweep.points) >= _MIN_POINTS:
        labels = [sweep.name(row) for row in sweep.records()]
        title = f"{name}: throughput against p99 ITL"
        described = (
            "Each point by its throughput and its p99 gap between tokens; those that no other beats in both "
            "are joined and named."
        )
        pictures["pareto"] = Picture(pareto_picture(sweep.points, labels, title), title, described)
    return pictures


def _of_settings(sweep: Sweep, name: str) -> Picture | None:
    """What the one or two settings do that are numbers."""
    points = sweep.points
    numeric = [key for key in sweep.keys if _is_numeric(points[key]) and points[key].nunique() > 1]
    rate = next((key for key in numeric if key in RATE_KEYS), None)
    if rate is not None:
        return _along_rate(sweep, rate, name)
    if len(sweep.keys) == 2 and len(numeric) == 2:
        y, x = sorted(numeric, key=lambda key: (key.endswith("max_tokens_per_step"), points[key].nunique()))
        over = f"{short_keys([x])[x]} and {short_keys([y])[y]}"
        title, described = f"{name}: {over}", f"Heat maps of goodput, p99 TTFT and p99 ITL over {over}."
        return Picture(heat_maps(points, x, y, title), title, described)
    if len(numeric) == 1 and len(sweep.keys) <= 2 and (points[numeric[0]] > 0).all():
        (x,) = numeric
        series = next((key for key in sweep.keys if key != x), "series")
        table = points if series in points else points.assign(series=name)
        title = f"{name}: what {short_keys([x])[x]} does"
        described = f"p99 TTFT, p99 ITL and goodput along {short_keys([x])[x]}."
        return Picture(sweep_curves(table, x, series, _CURVES, title), title, described)
    return None


def _is_numeric(column: pd.Series[float]) -> bool:
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def _along_rate(sweep: Sweep, rate: str, name: str) -> Picture:
    others = [key for key in sweep.keys if key != rate]
    labels = [point_name(row, others) or name for row in sweep.records()]
    curves = sweep.points.assign(rate_per_s=sweep.points[rate], contender=labels)
    title = f"{name}: what a request rate does"
    described = (
        "p99 of TTFT, TPOT and ITL with the SLO's limits, throughput, goodput and the share within the SLO, "
        "against the rate."
    )
    figure, _ = rate_panels(curves, sweep.slo, title, "", RATE_KEYS[rate])
    return Picture(figure, title, described)


def sweep_curves(
    table: pd.DataFrame, x: str, series: str, columns: Sequence[str], title: str, caption: str = ""
) -> Figure:
    """A panel for each of `columns` (of a sweep's table, as `ttft_s.p99`), along the swept setting `x`.

    The values of `x`, all positive, are evenly spaced if they double from one to the next.
    """
    with drawing(_WIDTH_IN, 3.6) as figure:
        panels = figure.subplots(1, len(columns), squeeze=False)[0]
        for axes, column in zip(panels, columns, strict=True):
            shown = _FIGURES.get(column) or latency(*column.split("."))
            for place, (value, points) in enumerate(table.groupby(series, sort=False)):
                values = points.sort_values(x)
                style = line_style(place) | {"label": point_name({series: value}, [series])}
                axes.plot(values[x], values[column] * shown.scale, marker="o", markersize=4, **style)
            axes.set(title=shown.title, xlabel=short_keys([x])[x])
            _finish(axes, sorted(table[x].unique()), column, _WIDTH_IN / len(columns) - _MARGIN_IN)
        head(figure, title, caption, panels[0])
    return figure


def _finish(axes: Axes, xs: list[float], column: str, width_in: float) -> None:
    axes.set_xscale("log", base=2)
    labels = [f"{value:,.15g}" for value in xs]
    is_crowded = any(
        log2(high / low) / log2(xs[-1] / xs[0]) * width_in < len(label) * _CHARACTER_IN
        for low, high, label in zip(xs, xs[1:], labels[1:], strict=False)
    )
    axes.set_xticks(xs, labels)
    if is_crowded:
        axes.tick_params(axis="x", labelrotation=40)
    axes.xaxis.set_minor_locator(NullLocator())
    _, highest = axes.get_ylim()
    axes.set_ylim(0, highest)
    if column in _SHARES:
        show_percent(axes.yaxis)
