"""The pictures that suit a sweep: what its settings do, heat maps of two, and which points no other beats."""

from __future__ import annotations

from collections.abc import Sequence
from math import log2
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullLocator, StrMethodFormatter

from cbsim.results.run_log import Column
from cbsim.results.slo import Slo, joined
from cbsim.show.capacity_plot import OFFERED, rate_panels
from cbsim.show.chapter import Picture
from cbsim.show.reader_tables import (
    ITL,
    THROUGHPUT,
    LimitedFigure,
    SummaryFigure,
    latency_axes,
    setting_axes,
)
from cbsim.show.style import FAINT, INK, PALETTE, drawing, head, label, line_style, mark_limit, show_percent
from cbsim.show.sweep_text import Sweep
from cbsim.show.text import format_figure, format_share
from cbsim.studies.front import distinct_front
from cbsim.studies.intervals import SAME
from cbsim.studies.labels import point_name, short_keys

RATE_KEYS = {
    "workload.rate_scale": "rate_scale: times the workload's rate",
    "workload.rate_per_s": OFFERED,
    "workload.arrivals.rate_per_s": OFFERED,
}
_MIN_POINTS = 3
"""Fewer points have no front."""
_WIDTH_IN, _MARGIN_IN = 11, 0.6
_FAR = 2.5
"""A limit that is more than this many times the highest figure is told, not drawn."""
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
        cost = front_axis(sweep.slo)
        told = cost.figure.title.partition(" (")[0]
        title = f"{name}: throughput against {told}"
        described = (
            f"Each point by its throughput and its {told}; those that no other beats in both are joined and "
            "named."
        )
        misses = [bool(sweep.promised(row)) and not sweep.promised(row).met(row) for row in sweep.records()]
        drawn = pareto_picture(sweep.points, labels, title, cost, misses)
        pictures["pareto"] = Picture(drawn, title, described)
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
        shown = setting_axes(sweep.slo)
        title, described = f"{name}: {over}", f"Heat maps of {_titles(shown)} over {over}."
        return Picture(heat_maps(points, x, y, title, shown), title, described)
    if len(numeric) == 1 and len(sweep.keys) <= 2 and (points[numeric[0]] > 0).all():
        (x,) = numeric
        series = next((key for key in sweep.keys if key != x), "series")
        table = points if series in points else points.assign(series=name)
        title = f"{name}: what {short_keys([x])[x]} does"
        aim, *latencies = setting_axes(sweep.slo)
        shown = [*latencies, aim]
        described = f"{_titles(shown)} along {short_keys([x])[x]}."
        return Picture(sweep_curves(table, x, series, shown, title), title, described)
    return None


FRONT = LimitedFigure(ITL)
"""What throughput is held against where the SLO limits no latency."""


def front_axis(slo: Slo) -> LimitedFigure:
    """What throughput is held against: the time between tokens that the SLO limits, or else the wait for the
    first or the last one; ITL where it limits none.
    """
    limited = {each.figure.key.partition(".")[0]: each for each in reversed(latency_axes(slo, ()))}
    known = (limited.get(name) for name in ("tpot_s", "itl_s", "ttft_s", "e2e_s"))
    return next((axis for axis in known if axis is not None), FRONT)


def _titles(shown: Sequence[LimitedFigure]) -> str:
    return joined([each.figure.title.partition(" (")[0] for each in shown])


def _is_numeric(column: pd.Series[float]) -> bool:
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def _along_rate(sweep: Sweep, rate: str, name: str) -> Picture:
    others = [key for key in sweep.keys if key != rate]
    labels = [point_name(row, others) or name for row in sweep.records()]
    curves = sweep.points.assign(rate_per_s=sweep.points[rate], contender=labels)
    title = f"{name}: what a request rate does"
    described = (
        "Latencies with the SLO's limits, throughput and, where requests have limits of their own, goodput "
        "and the share within them, against the rate."
    )
    figure, _ = rate_panels(curves, sweep.slo, title, "", RATE_KEYS[rate])
    return Picture(figure, title, described)


def sweep_curves(
    table: pd.DataFrame,
    x: str,
    series: str,
    figures: Sequence[LimitedFigure],
    title: str,
    caption: str = "",
) -> Figure:
    """A panel for each of some figures of a sweep's table, along the swept setting `x`, limits as lines.

    The values of `x`, all positive, are evenly spaced if they double from one to the next.
    """
    with drawing(_WIDTH_IN, 3.6) as figure:
        panels = figure.subplots(1, len(figures), squeeze=False)[0]
        for axes, (shown, limit) in zip(panels, figures, strict=True):
            for place, (value, points) in enumerate(table.groupby(series, sort=False)):
                values = points.sort_values(x)
                style = line_style(place) | {"label": point_name({series: value}, [series])}
                axes.plot(values[x], values[shown.key] * shown.scale, marker="o", markersize=4, **style)
            axes.set(title=shown.title, xlabel=short_keys([x])[x])
            if limit is not None and limit > _FAR * float(table[shown.key].max()) * shown.scale:
                axes.text(0.02, 0.98, f"SLO {limit:g} ↑", transform=axes.transAxes, va="top", fontsize=8)
                limit = None
            elif limit is not None:
                axes.axhline(limit, color=INK, linewidth=1)
                label(axes, f"SLO {limit:g}", (table[x].min(), limit), (0, 3), ha="left")
            _finish(axes, sorted(table[x].unique()), _WIDTH_IN / len(figures) - _MARGIN_IN, limit)
            if shown.form is format_share:
                show_percent(axes.yaxis)
        head(figure, title, caption, panels[0])
    return figure


def _finish(axes: Axes, xs: list[float], width_in: float, limit: float | None) -> None:
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
    # A limit's text stands above its line.
    axes.set_ylim(0, max(highest * 1.04, (limit or 0.0) * 1.15))


_COLORS = "cividis"
"""Made for colour-blind readers (Nunez, Anderton and Renslow, PLOS ONE 13(7), 2018)."""
_LEAST_SPAN = 0.1
"""Of the best value: so far apart are values in full contrast, at least."""
_ON_BRIGHT = "#111111"
_WIDE = 10
"""Values that span more than this factor get a logarithmic colour scale."""


def heat_maps(table: pd.DataFrame, x: str, y: str, title: str, figures: Sequence[LimitedFigure]) -> Figure:
    """A map for each of `figures` over the swept settings `x` and `y` of a table with one row a cell.

    Brighter is better, frames mark the best cell and those within `SAME` of it, cells beyond a limit are
    hatched, and those that were not run are left empty.
    """
    with drawing(11, 1.6 + 0.5 * max(3, table[y].nunique())) as figure:
        panels = figure.subplots(1, len(figures), squeeze=False)[0]
        for axes, (shown, limit) in zip(panels, figures, strict=True):
            cells = table.pivot(index=y, columns=x, values=shown.key).sort_index().sort_index(axis=1)
            _draw_map(axes, cells, shown, limit)
            axes.set(title=shown.title, xlabel=short_keys([x])[x], ylabel=short_keys([y])[y])
        framed = f"framed: the best, and what is within {SAME * 100:g}% of it"
        limited = [each for each in figures if each.limit is not None]
        hatched = joined([f"{each.figure.title} above {each.limit:g}" for each in limited])
        beyond = f"; hatched: beyond the SLO, {hatched}" if limited else ""
        head(figure, title, f"Brighter is better; {framed}{beyond}; empty: not run.")
    return figure


def _draw_map(axes: Axes, cells: pd.DataFrame, shown: SummaryFigure, limit: float | None) -> None:
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
            if limit is not None and value > limit:
                hatch: dict[str, Any] = {"edgecolor": color, "linewidth": 0, "hatch": "///", "alpha": 0.35}
                axes.add_patch(Rectangle((column, row), 1, 1, fill=False, **hatch))
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


MAX_LABELS = 14
"""How many points of the front are named at most, spread evenly along it."""
_MIN_SPAN = 0.05
"""An axis shows at least this share of its largest value, so that figures that are the same look it."""
_MARGIN = 0.08
"""Room on either side of the points, as a share of their extent."""
_CROWDED = 0.03
"""Points nearer than this share of the front's extent have no room for labels of their own."""


def pareto_picture(
    table: pd.DataFrame,
    labels: list[str],
    title: str,
    shown_cost: LimitedFigure = FRONT,
    misses: Sequence[bool] = (),
) -> Figure:
    """Throughput over a latency of every point; those on the front are joined and named by `labels`.

    Points that miss the SLO, by `misses`, are crosses beside it, unless all do.
    """
    cost, limit = shown_cost
    keys = [THROUGHPUT.key, cost.key]
    has_missed = np.array(misses or [False] * len(table), dtype=bool)
    has_missed &= not has_missed.all()
    every = table[keys].assign(name=labels, has_missed=has_missed).dropna(subset=keys)
    named, beside = every[~every["has_missed"]], every[every["has_missed"]]
    gains, costs = (named[shown.key].to_numpy(np.float64) * shown.scale for shown in (THROUGHPUT, cost))
    with drawing(10, 4.8) as figure:
        axes = figure.subplots()
        axes.plot(costs, gains, "o", color=FAINT, markersize=5)
        crosses = [beside[shown.key] * shown.scale for shown in (cost, THROUGHPUT)]
        axes.plot(*crosses, "x", color=FAINT, markersize=6)
        groups = distinct_front(gains, costs)
        front = np.array([group[0] for group in groups], dtype=np.int64)
        axes.step(costs[front], gains[front], where="post", color=PALETTE[0], linewidth=1)
        axes.plot(costs[front], gains[front], "o", color=PALETTE[0], markersize=6)
        chosen: Column = np.unique(np.linspace(0, len(front) - 1, MAX_LABELS).astype(int))
        shown = front[chosen]
        for first, last in _crowds(costs[shown], gains[shown]):
            text = str(first + 1)
            if last > first:
                text += f", {last + 1}" if last == first + 1 else f" to {last + 1}"
            label(axes, text, (costs[shown[first]], gains[shown[first]]))
        same = [
            [each for each in group if abs(costs[each] - costs[group[0]]) <= SAME * costs[group[0]]]
            for group in groups
        ]
        names = [_alike([str(named["name"].iloc[each]) for each in same[place]]) for place in chosen]
        key = "\n".join(f"{number}  {name}" for number, name in enumerate(names, 1))
        axes.text(1.02, 1, key, transform=axes.transAxes, va="top", fontsize=8, linespacing=1.5)
        axes.set(xlabel=cost.title, ylabel=THROUGHPUT.title)
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        costs, gains = (every[shown.key].to_numpy(np.float64) * shown.scale for shown in (cost, THROUGHPUT))
        if len(costs) and _extent(costs) > 0 and _extent(gains) > 0:
            axes.set(xlim=_limits(costs), ylim=_limits(gains))
        if limit is not None:
            mark_limit(axes, limit, f"SLO {limit:g}")
        caption = (
            f"Blue: no other point has more than {SAME * 100:g}% more throughput without a longer latency. "
            "Grey: some other has, or is the same."
        )
        caption += " Crosses miss the SLO." if len(beside) else ""
        head(figure, title, caption)
    return figure


def _alike(names: Sequence[str]) -> str:
    """The name of a point of the front, and of those that are the same."""
    if len(names) == 1:
        return names[0]
    return f"{names[0]} (the same: {names[1] if len(names) == 2 else f'{len(names) - 1} more'})"


def _crowds(costs: Column, gains: Column) -> list[tuple[int, int]]:
    """First and last of each run of points along the front that one label must stand for."""
    room = [_CROWDED * max(_extent(values), np.finfo(float).tiny) for values in (costs, gains) if len(values)]
    crowds: list[tuple[int, int]] = []
    for place, at in enumerate(zip(costs, gains, strict=True)):
        first = crowds[-1][0] if crowds else 0
        begun = (costs[first], gains[first])
        is_far = any(abs(one - other) > least for one, other, least in zip(at, begun, room, strict=True))
        if is_far or not crowds:
            crowds.append((place, place))
        else:
            crowds[-1] = (first, place)
    return crowds


def _extent(values: Column) -> float:
    """The span that an axis must show of values."""
    return max(float(np.ptp(values)), _MIN_SPAN * float(np.abs(values).max()))


def _limits(values: Column) -> tuple[float, float]:
    """An axis around values, with a margin."""
    middle, half = (values.min() + values.max()) / 2, (0.5 + _MARGIN) * _extent(values)
    return float(middle - half), float(middle + half)
