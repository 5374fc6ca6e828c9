"""Latencies: as CDFs, runs overlaid, and stacked from their parts, from the fast requests to the slowest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from cbsim.results.metrics import QUANTILES
from cbsim.results.result import Result
from cbsim.results.run_log import Column
from cbsim.results.slo import EACH, Slo
from cbsim.show.reader_tables import LATENCIES, SCALES
from cbsim.show.style import (
    INK,
    PALETTE,
    drawing,
    head,
    label,
    line_style,
    mark_limit,
    show_percent,
    show_plain,
)
from cbsim.show.text import format_figure
from cbsim.studies.explain.run_diagnosis import LATENCIES as STACKED
from cbsim.studies.explain.run_diagnosis import breakdown, has_parts

MAX_POINTS = 2000
"""A curve has no more vertices than this; between them it is straight."""
_PANELS = {
    "ttft_s": ("time to first token", "requests"),
    "tpot_s": ("mean time per output token", "requests"),
    "itl_s": ("gap between two tokens", "gaps"),
    "e2e_s": ("time to last token", "requests"),
}
_MARKED = np.array([0.5, 0.99])


def latency_cdfs(results: Mapping[str, Result], slo: Slo | Mapping[str, Any] | None = None) -> Figure:
    """Four panels, one curve a run under its label, with the SLO's limits as vertical lines.

    A limit on a percentile is met by curves that pass left of, or above, the cross on its line.
    """
    promised = Slo.of(slo)
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
            for place, (statistic, limit_s) in enumerate(promised.limits_on(key).items()):
                limit, of = limit_s * SCALES[unit], "" if statistic == EACH else f"{statistic} "
                is_drawn = mark_limit(axes, limit, f"SLO {of}{limit:g} {unit}", 0.03 + _LINE * place)
                if is_drawn and statistic in QUANTILES:
                    axes.plot([limit], [QUANTILES[statistic]], "x", color=INK, markersize=6)
        crosses = " Crosses: limits on percentiles, met by curves above them." if promised.of_run else ""
        head(figure, "Latency", f"Dots: p50 and p99.{crosses}", panels.flat[0])
    return figure


def _curve(result: Result, name: str) -> tuple[Column, Column]:
    """Quantiles in seconds and the share of requests (gaps) at or below them."""
    if name == "itl_s":
        return result.itl["itl_s"].to_numpy(), result.itl["quantile"].to_numpy()
    measured = np.sort(result.measured[name].dropna().to_numpy())
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


PERCENTILES = (0, 50, 90, 95, 99, 100)
SHOWN = {
    "queue": ("waits its turn", "#C9C9C9"),
    "no_slot": ("waits for a slot", "#929292"),
    "no_kv": ("waits for KV blocks", "#5C5C5C"),
    "handed_over": ("waits for decode side", "#8C6D46"),
    "kv_transfer": ("KV transfer", "#B2E2F7"),
    "decode_queue": ("waits to decode", "#D9C3A5"),
    "preempted": ("preempted", PALETTE[3]),
    "recompute": ("recomputed", "#F0E442"),
    "swap": ("KV swapped", PALETTE[4]),
    "prefill": ("own prompt", PALETTE[0]),
    "others_prefill": ("others' prompts", PALETTE[1]),
    "skipped": ("passed over", PALETTE[5]),
    "decode": ("decodes", PALETTE[2]),
    "host": ("host", PALETTE[6]),
}
"""Part -> its name and colour (Okabe and Ito's, waits in greys), from the bottom of the stack."""
MIN_SHARE = 0.01
"""Parts that are nowhere more of a bar than this are drawn and not named."""
_LINE = 0.075
"""Height of a name, as a share of the panel's."""
_CAPTION = (
    "Each bar is the mean over the requests between two percentiles of that latency. Percentages: of the "
    "slowest bar."
)


class PercentileBin(NamedTuple):
    """Some of the requests sorted by a latency."""

    low: int
    high: int
    """Percentiles: the slowest hundredth is from 99 to 100."""
    num_requests: int
    parts_s: Mapping[str, float]
    """Mean of each part over them, seconds; without those that are 0."""

    @property
    def total_s(self) -> float:
        """Their mean latency."""
        return sum(self.parts_s.values())


def percentile_bins(requests: pd.DataFrame, latency: str) -> list[PercentileBin]:
    """The bins between `PERCENTILES` that hold requests, of those that have the latency (`ttft_s`, `e2e_s`).

    Of equal latencies the earlier row comes first. A boundary between two requests goes to the slower bin, so
    that the slowest hundredth of 1,000 is ten requests.
    """
    measured = requests[requests[latency].notna()].sort_values(latency, kind="stable")
    edges = np.floor(np.array(PERCENTILES) * len(measured) / 100).astype(int)
    bins = []
    for (low, high), (first, end) in zip(pairwise(PERCENTILES), pairwise(edges), strict=True):
        parts = breakdown(measured.iloc[first:end], latency.removesuffix("_s"))
        if parts is not None:
            bins.append(PercentileBin(low, high, int(end - first), parts.parts_s))
    return bins


def latency_parts(results: Mapping[str, Result]) -> Figure:
    """A row of two panels a run, for the runs that have written down where the time went."""
    drawn = {name: result for name, result in results.items() if has_parts(result)}
    with drawing(11, 1.3 + 2.9 * max(1, len(drawn))) as figure:
        panels = figure.subplots(max(1, len(drawn)), len(STACKED), squeeze=False)
        for row, (name, result) in zip(panels, drawn.items(), strict=False):
            for axes, (latency, title) in zip(row, STACKED.items(), strict=True):
                _draw(axes, percentile_bins(result.measured, f"{latency}_s"))
                axes.set(title=title if len(drawn) == 1 else f"{name}: {title}", ylabel="mean (s)")
        for axes, title in zip(panels[-1], STACKED.values(), strict=True):
            axes.set_xlabel(f"percentiles of {title}")
        head(figure, "Where the time went", _CAPTION)
    return figure


def _draw(axes: Axes, bins: Sequence[PercentileBin]) -> None:
    places = range(len(bins))
    bottoms = [0.0] * len(bins)
    for name, (_, color) in SHOWN.items():
        heights = [part.parts_s.get(name, 0.0) for part in bins]
        if any(heights):
            axes.bar(places, heights, 0.72, bottoms, color=color, edgecolor="white", linewidth=0.4)
        bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
    for place, total_s in enumerate(bottoms):
        label(axes, f"{format_figure(total_s)} s", (place, total_s), (0, 3))
    axes.set_xticks(places, [f"p{part.low}\N{EN DASH}{part.high}" for part in bins])
    axes.tick_params(axis="x", length=0)
    axes.grid(visible=False, axis="x")
    top = 1.12 * max([*bottoms, 0.0]) or 1.0
    axes.set_ylim(0, top)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlim(-0.6, len(bins) + 1.3)
    if bins:
        _name(axes, bins, top)


def _name(axes: Axes, bins: Sequence[PercentileBin], top: float) -> None:
    """Each part's name and its share of the slowest requests' time, beside their bar."""
    slowest = bins[-1]
    middles: dict[str, float] = {}
    bottom = 0.0
    for name in SHOWN:
        height = slowest.parts_s.get(name, 0.0)
        if any(part.parts_s.get(name, 0.0) > MIN_SHARE * part.total_s for part in bins):
            middles[name] = bottom + height / 2
        bottom += height
    edge = len(bins) - 1 + 0.36
    for (name, middle), place in zip(middles.items(), _spread(list(middles.values()), top), strict=True):
        text, color = SHOWN[name]
        share = slowest.parts_s.get(name, 0.0) / slowest.total_s if slowest.total_s else 0.0
        percent = f"<{MIN_SHARE:.0%}" if 0 < share < MIN_SHARE else f"{share:.0%}"
        axes.plot([edge, edge + 0.28], [middle, place], color=color, linewidth=1, solid_capstyle="butt")
        axes.plot([edge + 0.36], [place], "s", color=color, markersize=5)
        axes.text(edge + 0.48, place, f"{text} {percent}", va="center", fontsize=8, color=INK)


def _spread(middles: Sequence[float], top: float) -> list[float]:
    """Places as near to `middles`, which rise, as names of one line allow within 0 and `top`."""
    line = min(_LINE * top, top / max(1, len(middles)))
    places: list[float] = []
    for middle in middles:
        places.append(max(middle, places[-1] + line if places else line / 2))
    limit = top - line / 2
    for place in reversed(range(len(places))):
        places[place] = min(places[place], limit)
        limit = places[place] - line
    return places
