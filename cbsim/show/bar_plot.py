"""Bars with intervals: one figure of each contender, named and told directly."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from cbsim.show.capacity_text import describe_slo
from cbsim.show.differences import format_interval
from cbsim.show.style import INK, PALETTE, head, new_figure, styled
from cbsim.show.text import format_figure
from cbsim.studies.capacity import CapacityAnswer
from cbsim.studies.intervals import Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def capacity_bars(answer: CapacityAnswer, title: str = "", labels: Mapping[str, str] | None = None) -> Figure:
    """A bar a contender: its requests a second with their interval; `labels` rename contenders."""
    bars = {
        (labels or {}).get(contender.label, contender.label): contender.rate_per_s
        for contender in answer.contenders
    }
    slo = f"{describe_slo(answer.slo)} for {answer.plan.share * 100:g}% of requests"
    caption = f"Lines: {answer.plan.confidence:.0%} intervals over {answer.plan.num_replicates} replicates."
    return interval_bars(bars, title or f"{answer.name}: capacity", f"requests/s with {slo}", caption)


def interval_bars(bars: Mapping[str, Interval | None], title: str, xlabel: str, caption: str = "") -> Figure:
    """A horizontal bar for each label from the top down; `None` says that there is nothing to draw."""
    with styled():
        figure = new_figure(9, 1.4 + 0.42 * len(bars))
        axes = figure.subplots()
        for place, interval in enumerate(bars.values()):
            if interval is None:
                axes.annotate("none", (0, place), xytext=(4, 0), textcoords="offset points", va="center")
                continue
            axes.barh(place, interval.estimate, height=0.6, color=PALETTE[0], alpha=0.75)
            is_known = math.isfinite(interval.half_width) and interval.half_width > 0
            if is_known:
                axes.plot([interval.low, interval.high], [place, place], color=INK, linewidth=1.5)
            text = format_interval(interval) if is_known else format_figure(interval.estimate)
            end = max(interval.estimate, interval.high if is_known else 0.0)
            axes.annotate(text, (end, place), xytext=(6, 0), textcoords="offset points", va="center")
        axes.set_yticks(range(len(bars)), list(bars), fontsize=9)
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set(xlabel=xlabel)
        axes.margins(x=0.15)
        axes.set_xlim(left=0)
        head(figure, title, caption)
    return figure
