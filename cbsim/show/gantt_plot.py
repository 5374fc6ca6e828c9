"""The Gantt picture: a row a request, what it did in each step, and the tokens of each step below."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from cbsim.show.style import FAINT, INK, PALETTE, drawing, head, label
from cbsim.studies.explain.batch_step import Bar, Gantt, Row

MAX_ROWS = 60
"""How many requests are drawn at most: rather those that do anything but decode."""
_COLORS = {
    "waiting": "#DDDDDD",
    "prefill": PALETTE[0],
    "decode": "#7FCFB6",
    "passed over": PALETTE[4],
    "preempted": PALETTE[1],
}
_WIDTH_IN = 13.0
_ROW_IN = 0.22
_CHARACTER_IN = 0.062
"""Of the texts on bars."""
_AXES_SHARE = 0.88
"""Of the figure's width."""


def gantt_picture(gantt: Gantt, title: str, *, over_time: bool = False, marked: str | None = None) -> Figure:
    """Requests from the top down in order of arrival, over steps or over simulated time.

    Chunks are labelled with their tokens where there is room. The request `marked` is drawn in any case, its
    name in bold.
    """
    rows = _shown(gantt.rows, marked)
    height_in = _ROW_IN * max(4, len(rows))
    with drawing(_WIDTH_IN, 2.6 + height_in) as figure:
        upper, lower = figure.subplots(2, sharex=True, height_ratios=[height_in, 0.9])
        for place, row in enumerate(rows):
            _draw_row(upper, place, row.bars, over_time)
        _draw_tokens(lower, gantt, over_time)
        first, last = gantt.steps[0], gantt.steps[-1]
        span = (first.start_s, last.end_s) if over_time else (first.step - 0.5, last.step + 0.5)
        upper.set_xlim(*span)
        upper.set_ylim(len(rows) - 0.4, -0.6)
        upper.set_yticks(range(len(rows)), [row.request_id for row in rows], fontsize=7)
        for tick in upper.get_yticklabels():
            tick.set_fontweight("bold" if tick.get_text() == marked else "normal")
        upper.tick_params(axis="y", length=0)
        upper.grid(visible=False, axis="y")
        lower.set_xlabel("simulated time (s)" if over_time else "step")
        if not over_time:
            lower.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=20))
        is_labelled = _label_chunks(upper, rows, span[1] - span[0], over_time)
        seen = {bar.kind for row in rows for bar in row.bars}
        keys = [Patch(color=color, label=kind) for kind, color in _COLORS.items() if kind in seen]
        figure.legend(handles=keys, loc="outside upper right", ncols=5, fontsize=8)
        head(figure, title, _caption(gantt, is_labelled))
    return figure


def _shown(rows: Sequence[Row], marked: str | None) -> list[Row]:
    """The rows that are drawn, in their order."""

    def dullness(place: int) -> int:
        if rows[place].request_id == marked:
            return 0
        return 1 if any(bar.kind != "decode" for bar in rows[place].bars) else 2

    kept = sorted(range(len(rows)), key=dullness)[:MAX_ROWS]
    return [rows[place] for place in sorted(kept)]


def _caption(gantt: Gantt, is_labelled: bool) -> str:
    told = "Numbers on bars: tokens of a prompt's chunk. " if is_labelled else ""
    told += "Below: tokens in each step."
    if len(gantt.rows) <= MAX_ROWS:
        return told
    drawn = f"{MAX_ROWS} of {len(gantt.rows):,} requests are drawn"
    return f"{told} {drawn}: rather those that do more than decode."


def _span(bar: Bar, over_time: bool) -> tuple[float, float]:
    return (bar.start_s, bar.end_s) if over_time else (bar.first - 0.5, bar.last + 0.5)


def _draw_row(axes: Axes, place: int, bars: Sequence[Bar], over_time: bool) -> None:
    starts, ends = np.array([_span(bar, over_time) for bar in bars]).T
    colors = [_COLORS[bar.kind] for bar in bars]
    edges = ["white" if bar.kind == "prefill" else "none" for bar in bars]
    axes.barh(place, ends - starts, 0.8, starts, color=colors, edgecolor=edges, linewidth=0.5)


def _label_chunks(axes: Axes, rows: Sequence[Row], span: float, over_time: bool) -> bool:
    """Write the tokens of each chunk on its bar, if there is room on most of them; whether there was."""
    in_per_unit = _AXES_SHARE * _WIDTH_IN / span
    chunks = [(place, bar) for place, row in enumerate(rows) for bar in row.bars if bar.num_tokens]
    labels = []
    for place, bar in chunks:
        start, end = _span(bar, over_time)
        text = f"{bar.num_tokens:,}"
        if len(text) * _CHARACTER_IN <= (end - start) * in_per_unit:
            labels.append(((start + end) / 2, place, text))
    if 2 * len(labels) < len(chunks):
        return False
    for x, y, text in labels:
        axes.text(x, y, text, size=6, color="white", ha="center", va="center_baseline")
    return bool(labels)


def _draw_tokens(axes: Axes, gantt: Gantt, over_time: bool) -> None:
    """Prompt and output tokens of each step, and the budget where there is one."""
    steps = gantt.steps
    left = [step.start_s if over_time else step.step - 0.5 for step in steps]
    width = [step.duration_s if over_time else 1 for step in steps]
    decodes = [step.num_decodes for step in steps]
    chunks = [step.num_tokens - step.num_decodes for step in steps]
    axes.bar(left, decodes, width, align="edge", color=_COLORS["decode"])
    axes.bar(left, chunks, width, bottom=decodes, align="edge", color=_COLORS["prefill"])
    budget = steps[0].budget
    if budget is not None and max(step.num_tokens for step in steps) > budget / 4:
        axes.axhline(budget, color=INK, linewidth=0.8, linestyle="--")
        where: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom"}
        label(axes, "budget", (1, budget), (0, 2), fontsize=7, **where)
        axes.set_ylim(top=budget * 1.25)
    axes.set_ylabel("tokens")
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.spines["bottom"].set_color(FAINT)
