"""What a rate does: latency, throughput, goodput and SLO attainment against requests a second."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter

from cbsim.base.units import MS_PER_S
from cbsim.show.style import FAINT, INK, head, line_style, new_figure, styled
from cbsim.studies.capacity import CapacityAnswer
from cbsim.studies.replicates import HIGH, LOW, across_replicates, is_known_by_spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RATE = "rate_per_s"
OFFERED = "requests/s offered"
_LATENCIES = {"ttft_s": ("TTFT p99", "s"), "tpot_s": ("TPOT p99", "ms"), "itl_s": ("ITL p99", "ms")}
_CROWDED = 1.6
"""Rates beyond this many times the highest capacity are not drawn: nothing holds there."""


def rate_picture(answer: CapacityAnswer) -> Figure:
    """The curve of a capacity: p99 latencies with the SLO's limits, throughput and goodput, attainment."""
    curves = across_replicates(
        answer.curve,
        ["contender", RATE],
        answer.plan.confidence,
        by_spread=answer.resampled_from is not None or is_known_by_spread(answer.config),
    )
    highest = max(
        (each.rate_per_s.estimate for each in answer.contenders if each.rate_per_s is not None),
        default=float(curves[RATE].max()),
    )
    shown = curves[curves[RATE] <= _CROWDED * highest]
    caption = (
        f"{answer.plan.num_replicates} replicates, bands: {answer.plan.confidence:.0%} intervals; "
        f"vertical lines: capacity, where the curve falls to {answer.plan.share * 100:g}% within the SLO."
    )
    figure, panels = rate_panels(shown, answer.slo, f"{answer.name}: what a request rate does", caption)
    for place, contender in enumerate(answer.contenders):
        if contender.rate_per_s is not None:
            for axes in panels:
                axes.axvline(
                    contender.rate_per_s.estimate,
                    color=line_style(place)["color"],
                    linewidth=0.8,
                    linestyle=(0, (1, 2)),
                )
    attainment = panels[-1]
    attainment.axhline(answer.plan.share, color=INK, linewidth=0.8)
    return figure


def rate_panels(
    curves: pd.DataFrame,
    slo: Mapping[str, float],
    title: str,
    caption: str,
    xlabel: str = OFFERED,
) -> tuple[Figure, list[Axes]]:
    """Six panels along `rate_per_s`, a curve a `contender`, of a table as `across_replicates` makes it."""
    with styled():
        figure = new_figure(11, 6.4)
        panels: list[Axes] = list(figure.subplots(2, 3).flat)
        for axes, (name, (heading, unit)) in zip(panels, _LATENCIES.items(), strict=False):
            scale = MS_PER_S if unit == "ms" else 1
            axes.set(title=heading, ylabel=unit)
            if not curves[f"{name}.p99"].notna().any():
                axes.text(0.5, 0.5, "nothing to measure", transform=axes.transAxes, ha="center")
                continue
            _draw(axes, curves, f"{name}.p99", scale)
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_formatter(NullFormatter())
            _limit(axes, slo.get(name), scale, unit)
        throughput, goodput, attainment = panels[3:]
        _draw(throughput, curves, "output_token_throughput_per_s")
        throughput.set(title="throughput", ylabel="output tokens/s")
        is_offered = xlabel == OFFERED
        _draw(goodput, curves, "goodput_per_s", top=_at_most_all if is_offered else _unbounded)
        if is_offered:
            goodput.axline((0, 0), slope=1, color=FAINT, linewidth=0.8)
        goodput.set(
            title="goodput (grey: all requests)" if is_offered else "goodput", ylabel="requests/s within SLO"
        )
        _draw(attainment, curves, "slo_attainment", top=lambda points: 1.0)
        attainment.set(title="SLO attainment", ylabel="share of requests")
        attainment.yaxis.set_major_formatter(PercentFormatter(xmax=1))
        for axes in panels:
            axes.set_xlim(0, float(curves[RATE].max()) * 1.02)
        for axes in panels[3:]:
            axes.set_ylim(0, axes.dataLim.y1 * 1.05 if axes.dataLim.y1 > 0 else 1)
            axes.set_xlabel(xlabel)
        head(figure, title, caption, panels[0])
    return figure, panels


def _unbounded(points: pd.DataFrame) -> float:
    return float("inf")


def _at_most_all(points: pd.DataFrame) -> pd.Series[float]:
    """No more requests within the SLO than were offered, but for what a mean over replicates says."""
    return points[[RATE, "goodput_per_s"]].max(axis=1)


def _draw(
    axes: Axes,
    curves: pd.DataFrame,
    column: str,
    scale: float = 1,
    top: Callable[[pd.DataFrame], Any] = _unbounded,
) -> None:
    """A curve a contender with its band, which ends where `top` says and where no figure can lie."""
    groups: Sequence[tuple[Any, pd.DataFrame]] = list(curves.groupby("contender", sort=False))
    for place, (label, curve) in enumerate(groups):
        points = curve.dropna(subset=[column]).sort_values(RATE)
        style: dict[str, Any] = dict(line_style(place))
        axes.plot(points[RATE], points[column] * scale, marker=".", label=str(label), **style)
        if not np.isfinite(points[column + HIGH]).any():
            continue
        # Latencies stand on logarithmic axes, which have no 0.
        floor = points[column].min() / 2 if column.endswith(".p99") else 0.0
        ceiling = top(points)
        low, high = (points[column + end].astype(float).clip(floor, ceiling) * scale for end in (LOW, HIGH))
        axes.fill_between(points[RATE], low, high, color=style["color"], alpha=0.15, linewidth=0)


def _limit(axes: Axes, limit_s: float | None, scale: float, unit: str) -> None:
    """A line at the SLO's limit, in sight whatever the curves do."""
    if limit_s is None:
        return
    limit = limit_s * scale
    axes.axhline(limit, color=INK, linewidth=1)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, limit / 1.5), max(high, limit * 1.5))
    axes.annotate(
        f"SLO\n{limit:g} {unit}",
        (1, limit),
        xytext=(3, 0),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        fontsize=8,
        va="center",
    )
