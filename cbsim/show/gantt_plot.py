"""The Gantt picture: a row a request, what it did in each step, and the tokens of each step below."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from cbsim.show.style import FAINT, INK, PALETTE, head, new_figure, styled
from cbsim.studies.explain.gantt import Bar, Gantt, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_ROWS = 60
"""So many requests are drawn; of more, first those that do anything but decode."""
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
    with styled():
        figure = new_figure(_WIDTH_IN, 2.6 + _ROW_IN * max(4, len(rows)))
        upper, lower = figure.subplots(2, sharex=True, height_ratios=[_ROW_IN * max(4, len(rows)), 0.9])
        for place, row in enumerate(rows):
            for bar in row.bars:
                _draw_bar(upper, place, bar, over_time)
        _draw_tokens(lower, gantt, over_time)
        first, last = gantt.steps[0], gantt.steps[-1]
        span = (first.start_s, last.end_s) if over_time else (first.step - 0.5, last.step + 0.5)
        upper.set_xlim(*span)
        upper.set_ylim(len(rows) - 0.4, -0.6)
        upper.set_yticks(range(len(rows)), [row.request_id for row in rows], fontsize=7)
        for label in upper.get_yticklabels():
            label.set_fontweight("bold" if label.get_text() == marked else "normal")
        upper.tick_params(axis="y", length=0)
        upper.grid(visible=False, axis="y")
        if over_time:
            lower.set_xlabel("simulated time (s)")
        else:
            lower.set_xlabel("step")
            lower.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=20))
        is_labelled = _label_chunks(upper, rows, span[1] - span[0], over_time)
        figure.legend(handles=_keys(rows), loc="outside upper right", ncols=5, fontsize=8)
        head(figure, title, _caption(gantt, is_labelled))
    return figure


def _shown(rows: Sequence[Row], marked: str | None) -> list[Row]:
    """The rows that are drawn, in their order."""
    if len(rows) <= MAX_ROWS:
        return list(rows)
    places = range(len(rows))
    by_interest = sorted(places, key=lambda place: _dullness(rows[place], marked))
    kept = set(by_interest[:MAX_ROWS])
    return [rows[place] for place in places if place in kept]


def _dullness(row: Row, marked: str | None) -> int:
    if row.request_id == marked:
        return 0
    return 1 if any(bar.kind != "decode" for bar in row.bars) else 2


def _keys(rows: Sequence[Row]) -> list[Patch]:
    seen = {bar.kind for row in rows for bar in row.bars}
    return [Patch(color=color, label=kind) for kind, color in _COLORS.items() if kind in seen]


def _caption(gantt: Gantt, is_labelled: bool) -> str:
    told = ["Below: tokens in each step."]
    if is_labelled:
        told.insert(0, "Numbers on bars: tokens of a prompt's chunk.")
    if len(gantt.rows) > MAX_ROWS:
        told.append(
            f"{MAX_ROWS} of {len(gantt.rows):,} requests are drawn: rather those that do more than decode."
        )
    return " ".join(told)


def _span(bar: Bar, over_time: bool) -> tuple[float, float]:
    return (bar.start_s, bar.end_s) if over_time else (bar.first - 0.5, bar.last + 0.5)


def _draw_bar(axes: Axes, place: int, bar: Bar, over_time: bool) -> None:
    start, end = _span(bar, over_time)
    axes.barh(
        place,
        end - start,
        left=start,
        height=0.8,
        color=_COLORS[bar.kind],
        edgecolor="white" if bar.kind == "prefill" else "none",
        linewidth=0.5,
    )


def _label_chunks(axes: Axes, rows: Sequence[Row], span: float, over_time: bool) -> bool:
    """Write the tokens of each chunk on its bar, if there is room on most of them; whether there was."""
    in_per_unit = _AXES_SHARE * _WIDTH_IN / span
    labels = []
    num_chunks = 0
    for place, row in enumerate(rows):
        for bar in row.bars:
            if not bar.num_tokens:
                continue
            num_chunks += 1
            start, end = _span(bar, over_time)
            text = f"{bar.num_tokens:,}"
            if len(text) * _CHARACTER_IN <= (end - start) * in_per_unit:
                labels.append(((start + end) / 2, place, text))
    if 2 * len(labels) < num_chunks:
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
        axes.annotate(
            "budget",
            (1, budget),
            (0, 2),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            va="bottom",
            size=7,
        )
        axes.set_ylim(top=budget * 1.25)
    axes.set_ylabel("tokens")
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.spines["bottom"].set_color(FAINT)
