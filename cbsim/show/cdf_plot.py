"""Latencies as CDFs: what share of requests waited no longer than t, runs overlaid."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from cbsim.results.result import Result
from cbsim.results.run_log import Column
from cbsim.show.figures import LATENCIES, SCALES
from cbsim.show.style import INK, drawing, head, label, line_style, show_percent, show_plain

MAX_POINTS = 2000
"""A curve has no more vertices than this; between them it is straight."""
_PANELS = {
    "ttft_s": ("time to first token", "requests"),
    "tpot_s": ("mean time per output token", "requests"),
    "itl_s": ("gap between two tokens", "gaps"),
    "e2e_s": ("time to last token", "requests"),
}
_MARKED = np.array([0.5, 0.99])


def latency_cdfs(results: Mapping[str, Result], slo: Mapping[str, float | None] | None = None) -> Figure:
    """Four panels, one curve a run under its label, with the SLO's limits (seconds) as vertical lines."""
    with drawing(11, 6.4) as figure:
        panels = figure.subplots(2, 2)
        for axes, (key, (meaning, counted)) in zip(panels.flat, _PANELS.items(), strict=True):
            name, unit = LATENCIES[key]
            curves = []
            for place, (run, result) in enumerate(results.items()):
                values, share = _curve(result, key)
                curves.append(values * SCALES[unit])
                style = line_style(place)
                axes.plot(curves[-1], share, label=run, **style)
                if len(share):
                    marked = np.interp(_MARKED, share, curves[-1])
                    axes.plot(marked, _MARKED, "o", markersize=4, color=style["color"])
            axes.set(title=f"{name}: {meaning}", xlabel=f"{name} ({unit})", ylabel=f"share of {counted}")
            show_shares(axes)
            _choose_scale(axes, [curve for curve in curves if len(curve)])
            limit_s = (slo or {}).get(key)
            if limit_s is not None:
                _draw_limit(axes, limit_s * SCALES[unit], unit)
        head(figure, "Latency", "Dots: p50 and p99.", panels.flat[0])
    return figure


def _curve(result: Result, name: str) -> tuple[Column, Column]:
    """Quantiles in seconds and the share of requests (gaps) at or below them."""
    if name == "itl_s":
        return result.itl["itl_s"].to_numpy(), result.itl["quantile"].to_numpy()
    measured = np.sort(result.requests[name].dropna().to_numpy())
    share = np.linspace(0, 1, min(MAX_POINTS, len(measured)))
    return (np.quantile(measured, share) if len(measured) else measured), share


def show_shares(axes: Axes) -> None:
    """An axis of shares, up to all."""
    axes.set_ylim(0, 1.01)
    show_percent(axes.yaxis)


def _choose_scale(axes: Axes, curves: list[Column]) -> None:
    """A logarithmic axis where curves span more than two decades, from their first percentiles on."""
    start = min((curve[len(curve) // 50] for curve in curves), default=0)
    longest = max((curve[-1] for curve in curves), default=0)
    if not 0 < 30 * start < longest:
        axes.set_xlim(left=0)
        return
    axes.set_xscale("log")
    axes.set_xlim(left=start / 2)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if longest < 3000 * start else (1,)))
    show_plain(axes.xaxis)


def _draw_limit(axes: Axes, limit: float, unit: str) -> None:
    """A line at the limit, or an arrow to where it lies beyond the curves."""
    text = f"SLO {limit:g} {unit}"
    first, last = axes.get_xlim()
    if limit > last:
        axes.text(0.99, 0.03, f"{text} →", transform=axes.transAxes, ha="right", fontsize=8)
    elif limit < first:
        axes.text(0.01, 0.03, f"← {text}", transform=axes.transAxes, fontsize=8)
    else:
        axes.axvline(limit, color=INK, linewidth=1, linestyle=(0, (1, 2)))
        label(axes, text, (limit, 0.03), (4, 0), ha="left")
