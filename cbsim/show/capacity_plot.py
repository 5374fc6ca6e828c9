"""Capacities: bars with intervals, and what a rate does to latency, throughput and SLO attainment."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from cbsim.results.slo import Slo, percent
from cbsim.show.capacity_text import rate_text
from cbsim.show.reader_tables import LimitedFigure, rate_axes
from cbsim.show.style import FAINT, INK, PALETTE, drawing, head, label, line_style, show_percent, show_plain
from cbsim.studies.capacity import CapacityAnswer, Contender, Plan
from cbsim.studies.intervals import (
    HIGH,
    LOW,
    MIN_REPLICATES,
    Interval,
    across_replicates,
    is_known_by_spread,
    seen_range,
)

RATE = "rate_per_s"
OFFERED = "requests/s offered"
_NUM_COLUMNS = 3
_CROWDED = 1.6
"""Rates beyond this many times the highest capacity are not drawn: nothing holds there."""


def capacity_bars(answer: CapacityAnswer, title: str = "", labels: Mapping[str, str] | None = None) -> Figure:
    """A bar a contender: its requests a second with their interval; `labels` rename contenders."""
    renamed = labels or {}
    bars = {
        renamed.get(each.label, each.label): (_drawn(each), rate_text(each)) for each in answer.contenders
    }
    caption = f"Lines: {_spread(answer.plan)}."
    xlabel = f"requests/s with {answer.slo.promise()}"
    return interval_bars(bars, title or f"{answer.name}: capacity", xlabel, caption)


def _drawn(contender: Contender) -> Interval | None:
    """What is drawn of a capacity: what replicates saw where they are too few for an interval."""
    seen, rate = seen_range(contender.own_rates_per_s), contender.rate_per_s
    return rate if rate is None or seen is None else Interval(rate.estimate, *seen)


def _spread(plan: Plan) -> str:
    """What lines and bands show."""
    if plan.num_replicates < MIN_REPLICATES:
        return f"the least and the most of {plan.num_replicates} replicates"
    return f"{plan.confidence:.0%} intervals over {plan.num_replicates} replicates"


def interval_bars(
    bars: Mapping[str, tuple[Interval | None, str]], title: str, xlabel: str, caption: str = ""
) -> Figure:
    """A horizontal bar for each label from the top down with a text; the text alone where there is none."""
    beside: dict[str, Any] = {"ha": "left", "va": "center", "fontsize": None}
    with drawing(9, 1.4 + 0.42 * len(bars)) as figure:
        axes = figure.subplots()
        for place, (interval, text) in enumerate(bars.values()):
            if interval is None:
                label(axes, text, (0, place), (4, 0), **beside)
                continue
            axes.barh(place, interval.estimate, height=0.6, color=PALETTE[0], alpha=0.75)
            is_known = math.isfinite(interval.half_width) and interval.half_width > 0
            if is_known:
                axes.plot([interval.low, interval.high], [place, place], color=INK, linewidth=1.5)
            end = max(interval.estimate, interval.high if is_known else 0.0)
            label(axes, text, (end, place), (6, 0), **beside)
        axes.set_yticks(range(len(bars)), list(bars), fontsize=9)
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set(xlabel=xlabel)
        axes.margins(x=0.15)
        axes.set_xlim(left=0)
        head(figure, title, caption)
    return figure


def rate_picture(answer: CapacityAnswer) -> Figure:
    """The curve of a capacity: p99 latencies with the SLO's limits, throughput and goodput, attainment."""
    plan, slo = answer.plan, answer.slo
    by_spread = answer.resampled_from is not None or is_known_by_spread(answer.config)
    curves = across_replicates(answer.curve, ["contender", RATE], plan.confidence, by_spread=by_spread)
    known = {
        place: each.rate_per_s.estimate for place, each in enumerate(answer.contenders) if each.rate_per_s
    }
    highest = max(known.values(), default=float(curves[RATE].max()))
    leaves = "leaves the SLO" if slo.of_run else f"falls to {percent(slo.share)} within the SLO"
    caption = f"Bands: {_spread(plan)}; vertical lines: capacity, where the curve {leaves}."
    if slo.own:
        caption += " Goodput: per second until the last answer."
    title = f"{answer.name}: what a request rate does"
    figure, panels = rate_panels(curves[curves[RATE] <= _CROWDED * highest], slo, title, caption)
    for place, rate in known.items():
        for axes in panels:
            axes.axvline(rate, color=line_style(place)["color"], linewidth=0.8, linestyle=(0, (1, 2)))
    if slo.own:
        panels[-1].axhline(slo.share, color=INK, linewidth=0.8)
    return figure


def rate_panels(
    curves: pd.DataFrame, slo: Slo, title: str, caption: str, xlabel: str = OFFERED
) -> tuple[Figure, list[Axes]]:
    """Panels along `rate_per_s`, a curve a `contender`, of a table as `across_replicates` makes it.

    First latencies with their limits, then throughput; goodput and attainment where each request has limits.
    """
    latencies, rates = rate_axes(slo), 3 if slo.own else 1
    num_rows = math.ceil((len(latencies) + rates) / _NUM_COLUMNS)
    with drawing(11, 3.2 * num_rows) as figure:
        grid: list[Axes] = list(figure.subplots(num_rows, _NUM_COLUMNS).flat)
        panels, left_over = grid[: len(latencies) + rates], grid[len(latencies) + rates :]
        for axes, shown in zip(panels, latencies, strict=False):
            _draw_latency(axes, curves, shown)
        of_rates = panels[len(latencies) :]
        _draw(of_rates[0], curves, "output_token_throughput_per_s")
        of_rates[0].set(title="throughput", ylabel="output tokens/s")
        if slo.own:
            _draw_kept(of_rates[1], of_rates[2], curves, xlabel == OFFERED)
        for axes in panels:
            axes.set_xlim(0, float(curves[RATE].max()) * 1.02)
        for axes in of_rates:
            axes.set_ylim(0, axes.dataLim.y1 * 1.05 if axes.dataLim.y1 > 0 else 1)
        for axes in panels[-_NUM_COLUMNS:]:
            axes.set_xlabel(xlabel)
        for axes in left_over:
            axes.remove()
        head(figure, title, caption, panels[0])
    return figure, panels


def _draw_kept(goodput: Axes, attainment: Axes, curves: pd.DataFrame, is_offered: bool) -> None:
    """How many requests keep their own limits: a second, and of all."""
    # No more requests within the SLO than were offered, but for what a mean over replicates says.
    offered = curves[[RATE, "goodput_per_s"]].max(axis=1)
    _draw(goodput, curves, "goodput_per_s", top=offered if is_offered else math.inf)
    if is_offered:
        goodput.axline((0, 0), slope=1, color=FAINT, linewidth=0.8)
    told = "goodput (grey: all requests)" if is_offered else "goodput"
    goodput.set(title=told, ylabel="requests/s within SLO")
    _draw(attainment, curves, "slo_attainment", top=1.0)
    attainment.set(title="SLO attainment", ylabel="share of requests")
    show_percent(attainment.yaxis)


def _draw_latency(axes: Axes, curves: pd.DataFrame, shown: LimitedFigure) -> None:
    """A latency on a logarithmic axis, with a line at the SLO's limit, in sight whatever the curves do."""
    figure = shown.figure
    title, _, unit = figure.title.removesuffix(")").rpartition(" (")
    axes.set(title=title, ylabel=unit)
    if not curves[figure.key].notna().any():
        axes.text(0.5, 0.5, "nothing to measure", transform=axes.transAxes, ha="center")
        return
    _draw(axes, curves, figure.key, figure.scale)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    show_plain(axes.yaxis)
    if shown.limit is None:
        return
    axes.axhline(shown.limit, color=INK, linewidth=1)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, shown.limit / 1.5), max(high, shown.limit * 1.5))
    where: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "ha": "left", "va": "center"}
    label(axes, f"SLO\n{shown.limit:g} {unit}", (1, shown.limit), (3, 0), **where)


def _draw(axes: Axes, curves: pd.DataFrame, column: str, scale: float = 1, top: Any = math.inf) -> None:
    """A curve a contender with its band, which ends at `top` and where no figure can lie."""
    tops = pd.Series(top, curves.index)
    for place, (name, curve) in enumerate(curves.groupby("contender", sort=False)):
        points = curve.dropna(subset=[column]).sort_values(RATE)
        style: dict[str, Any] = dict(line_style(place))
        axes.plot(points[RATE], points[column] * scale, marker=".", label=str(name), **style)
        if not np.isfinite(points[column + HIGH]).any():
            continue
        # Latencies stand on logarithmic axes, which have no 0.
        floor = points[column].min() / 2 if "." in column else 0.0
        bounds = (points[column + end].astype(float) for end in (LOW, HIGH))
        low, high = (bound.clip(floor, tops[points.index]) * scale for bound in bounds)
        axes.fill_between(points[RATE], low, high, color=style["color"], alpha=0.15, linewidth=0)
