"""The latency CDFs: what share of requests waited no longer than t for TTFT, TPOT, ITL and E2E."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter

from cbsim.base.units import MS_PER_S
from cbsim.results.result import Result
from cbsim.results.run_log import Column
from cbsim.show.style import INK, head, line_style, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_POINTS = 2000
"""A curve has no more vertices than this; between them it is straight."""
_PANELS = {
    "ttft_s": ("TTFT: time to first token", "s", "requests"),
    "tpot_s": ("TPOT: mean time per output token", "ms", "requests"),
    "itl_s": ("ITL: gap between two tokens", "ms", "gaps"),
    "e2e_s": ("E2E: time to last token", "s", "requests"),
}
_MARKED = np.array([0.5, 0.99])


def latency_cdfs(results: Mapping[str, Result], slo: Mapping[str, float | None] | None = None) -> Figure:
    """Four panels, one curve a run under its label, with the SLO's limits (seconds) as vertical lines."""
    with styled():
        figure = new_figure(11, 6.4)
        panels = figure.subplots(2, 2)
        for axes, (name, (title, unit, counted)) in zip(panels.flat, _PANELS.items(), strict=True):
            scale = MS_PER_S if unit == "ms" else 1
            for place, (label, result) in enumerate(results.items()):
                values_s, share = _curve(result, name)
                style = line_style(place)
                axes.plot(values_s * scale, share, label=label, **style)
                if len(share):
                    marked = np.interp(_MARKED, share, values_s * scale)
                    axes.plot(marked, _MARKED, "o", markersize=4, color=style["color"])
            axes.set(title=title, xlabel=f"{name[:-2].upper()} ({unit})", ylabel=f"share of {counted}")
            axes.set_ylim(0, 1.01)
            axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
            _choose_scale(axes)
            _draw_limit(axes, (slo or {}).get(name), scale, unit)
        head(figure, "Latency", "Dots: p50 and p99.", panels.flat[0])
    return figure


def _curve(result: Result, name: str) -> tuple[Column, Column]:
    """Quantiles in seconds and the share of requests (gaps) at or below them."""
    if name == "itl_s":
        itl = result.itl
        return itl["itl_s"].to_numpy(), itl["quantile"].to_numpy()
    measured = np.sort(result.requests[name].dropna().to_numpy())
    share = np.linspace(0, 1, min(MAX_POINTS, len(measured)))
    return (np.quantile(measured, share) if len(measured) else measured), share


def _choose_scale(axes: Axes) -> None:
    """A logarithmic axis where curves span more than two decades, from their first percentiles on."""
    curves: list[Any] = [
        np.asarray(line.get_xdata()) for line in axes.get_lines() if line.get_marker() == "None"
    ]
    starts = [curve[len(curve) // 50] for curve in curves if len(curve)]
    longest = max((curve[-1] for curve in curves if len(curve)), default=0)
    if starts and min(starts) > 0 and longest > 30 * min(starts):
        axes.set_xscale("log")
        axes.set_xlim(left=min(starts) / 2)
        digits = (1, 2, 5) if longest < 3000 * min(starts) else (1,)
        axes.xaxis.set_major_locator(LogLocator(subs=digits))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(left=0)


def _draw_limit(axes: Axes, limit_s: float | None, scale: float, unit: str) -> None:
    """A line at the limit, or an arrow to where it lies beyond the curves."""
    if limit_s is None:
        return
    limit, text = limit_s * scale, f"SLO {limit_s * scale:g} {unit}"
    first, last = axes.get_xlim()
    if limit > last:
        axes.text(0.99, 0.03, f"{text} →", transform=axes.transAxes, ha="right", fontsize=8)
    elif limit < first:
        axes.text(0.01, 0.03, f"← {text}", transform=axes.transAxes, fontsize=8)
    else:
        axes.axvline(limit, color=INK, linewidth=1, linestyle=(0, (1, 2)))
        axes.annotate(text, (limit, 0.03), xytext=(4, 0), textcoords="offset points", fontsize=8)
