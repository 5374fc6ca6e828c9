"""Runs over simulated time, a row of panels for each or its pools: queue, batch and KV use; MFU and MBU."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from cbsim.results.result import Result
from cbsim.results.run_log import Column
from cbsim.results.step_work import has_utilization, step_mbu, step_mfu
from cbsim.show.style import PALETTE, drawing, head, show_percent

NUM_BINS = 160
"""Bins of a panel: the line is the mean over a bin's time, the band reaches to its highest step."""
MAX_SPREAD = 4
"""Runs share an axis unless their highest values differ by more than this factor."""
_PANELS = {
    "waiting requests": "num_waiting",
    "decodes in a step": "num_decode_seqs",
    "prompt tokens in a step": "num_prefill_tokens",
    "KV blocks taken": "kv_share",
}
_SHARES = {"MFU: share of peak FLOP/s": step_mfu, "MBU: share of peak memory bandwidth": step_mbu}
_LINE_CHARACTERS = 16
"""Of a row's name, which stands upright beside it."""
_CAPTION = (
    f"Line: mean over 1/{NUM_BINS} of the time shown, idle time as 0. Band: up to the highest step in it. "
    "Runs that differ widely have scales of their own."
)


def timeline(results: Mapping[str, Result]) -> Figure:
    """Panels over simulated time; axes are shared by all runs where that leaves each of them legible."""
    rows = _rows(results)
    with drawing(13, 1.4 + 1.9 * len(rows)) as figure:
        panels = figure.subplots(max(1, len(rows)), len(_PANELS), squeeze=False)
        ends_s = _scales([_end_s(steps) for _, steps in rows.values()])
        for row, (result, steps), end_s in zip(panels, rows.values(), ends_s, strict=False):
            edges_s = np.linspace(0, end_s, NUM_BINS + 1)
            there = num_there(result, steps, edges_s)
            for axes, column, color in zip(row, _PANELS.values(), PALETTE[: len(row)], strict=True):
                _draw_column(axes, steps, column, edges_s, there, color)
                axes.set_xlim(0, end_s)
                axes.tick_params(labelbottom=len(set(ends_s)) > 1)
        for column_of_panels, title in zip(panels.T, _PANELS, strict=True):
            tops = _scales([axes.dataLim.y1 for axes in column_of_panels])
            for axes, top in zip(column_of_panels, tops, strict=True):
                axes.set_ylim(0, top * 1.05)
                if _PANELS[title] == "kv_share":
                    show_percent(axes.yaxis)
                else:
                    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
            column_of_panels[-1].tick_params(labelbottom=True)
        _name(panels, rows, _PANELS)
        figure.align_ylabels(panels[:, 0])
        head(figure, "Queue, batch and KV use over time", _CAPTION)
    return figure


def utilization(results: Mapping[str, Result]) -> Figure:
    """MFU and MBU over simulated time of the runs that say enough of their steps; replicas are averaged."""
    shown = _rows({label: result for label, result in results.items() if has_utilization(result)})
    with drawing(11, 1.4 + 1.7 * max(1, len(shown))) as figure:
        panels = figure.subplots(max(1, len(shown)), len(_SHARES), squeeze=False)
        for row, (result, steps) in zip(panels, shown.values(), strict=False):
            for axes, share, color in zip(row, _SHARES.values(), PALETTE[: len(row)], strict=True):
                _draw_share(axes, result, steps, partial(share, result), color)
        for column in panels.T:
            top = max(axes.dataLim.y1 for axes in column)
            for axes in column:
                axes.set_ylim(0, top * 1.1 if top > 0 else 1)
                show_percent(axes.yaxis)
        _name(panels, shown, _SHARES)
        caption = f"Mean over 1/{NUM_BINS} of the time, idle time as 0. Dashed: mean over the run."
        head(figure, "What the GPUs do over time", caption)
    return figure


def _rows(results: Mapping[str, Result]) -> dict[str, tuple[Result, pd.DataFrame]]:
    """Each run and its steps; a run of several pools has a row for each of them, named after it."""
    rows = {}
    for label, result in results.items():
        pools = list(result.steps.groupby("pool", observed=True, sort=False))
        for pool, steps in pools if len(pools) > 1 else ():
            rows[f"{label}: {pool!s}"] = (result, steps)
        if len(pools) < 2:
            rows[label] = (result, result.steps)
    return rows


def _name(panels: Column, rows: Iterable[str], columns: Iterable[str]) -> None:
    """Say once for each row and column of panels what it shows."""
    for axes, title in zip(panels[:, 0], rows, strict=False):
        lines = broken(title, _LINE_CHARACTERS)
        axes.set_ylabel("\n".join(lines), fontsize=10 if len(lines) <= 2 else 8, fontweight="bold")
    for column, title in zip(panels.T, columns, strict=True):
        column[0].set_title(title, fontweight="bold")
        column[-1].set_xlabel("simulated time (s)")


def broken(name: str, width: int) -> list[str]:
    """A name in lines of about `width` characters, broken at blanks and after underscores."""
    lines = [""]
    for piece in re.findall(r"[^ _]*(?: |_+|$)", name):
        if lines[-1] and len(lines[-1] + piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return [line.rstrip() for line in lines]


def _scales(highest: Sequence[float]) -> list[float]:
    """The end of each run's axis: the same for all, unless some would then be too small to read."""
    ends = [value if value > 0 else 1.0 for value in highest]
    is_shared = max(ends, default=1.0) <= MAX_SPREAD * min(ends, default=1.0)
    return [max(ends)] * len(ends) if is_shared else ends


def bin_steps(start_s: Column, duration_s: Column, values: Column, edges_s: Column) -> tuple[Column, Column]:
    """Time-weighted mean and maximum, per bin, of what holds during each step; 0 where no step is under way.

    Steps are of one replica, in order, so that they don't overlap; values are not negative; all times are in
    seconds. Means are exact integrals over the bin, however many steps lie in it or reach across its edges.
    """
    if not len(start_s):
        return np.zeros(len(edges_s) - 1), np.zeros(len(edges_s) - 1)
    end_s = start_s + duration_s
    area = np.cumsum(values * duration_s)
    instants = np.column_stack([start_s, end_s]).ravel()
    area_by_then = np.column_stack([np.concatenate([[0.0], area[:-1]]), area]).ravel()
    mean = np.diff(np.interp(edges_s, np.maximum.accumulate(instants), area_by_then)) / np.diff(edges_s)
    first = np.searchsorted(start_s, edges_s)
    begun = np.maximum.reduceat(np.append(values, 0.0), first)[:-1]
    highest = np.where(first[1:] > first[:-1], begun, 0.0)
    under_way = np.maximum(first[:-1] - 1, 0)
    reaches_in = (first[:-1] > 0) & (end_s[under_way] > edges_s[:-1])
    return mean, np.maximum(highest, np.where(reaches_in, values[under_way], 0.0))


def binned_steps(
    steps: pd.DataFrame, values: Callable[[pd.DataFrame], Column], edges_s: Column
) -> list[tuple[Column, Column]]:
    """What `bin_steps` finds for each replica."""
    replicas = (frame for _, frame in steps.groupby("replica"))
    return [
        bin_steps(frame["start_s"].to_numpy(), frame["duration_s"].to_numpy(), values(frame), edges_s)
        for frame in replicas
    ]


def num_there(result: Result, steps: pd.DataFrame, edges_s: Column) -> Column:
    """Mean number, per bin, of the replicas of some steps that are there or on their way."""
    replicas = {*steps["replica"]}
    changes = result.replicas
    if changes is None:
        return np.full(len(edges_s) - 1, max(1, len(replicas)))
    own = changes[changes["pool"].isin(steps["pool"].unique())].sort_values("time_s", kind="stable")
    there = replicas - {*own["replica"]}
    levels = [(0.0, len(there))]
    for time_s, replica, event in zip(own["time_s"], own["replica"], own["event"], strict=True):
        there = there - {replica} if event == "stopped" else there | {replica}
        levels.append((time_s, len(there)))
    time_s, number = np.array([*levels, (max(edges_s[-1], levels[-1][0]), 0)]).T
    area = np.concatenate([[0.0], np.cumsum(number[:-1] * np.diff(time_s))])
    mean: Column = np.diff(np.interp(edges_s, time_s, area)) / np.diff(edges_s)
    return mean


def _draw_column(
    axes: Axes, steps: pd.DataFrame, column: str, edges_s: Column, there: Column, color: str
) -> None:
    """Several replicas are added up (KV use: averaged), bandless: their highest steps don't coincide."""

    def values(frame: pd.DataFrame) -> Column:
        shares = frame["kv_blocks_used"] / frame["kv_blocks_total"] if column == "kv_share" else frame[column]
        return shares.to_numpy(np.float64)

    binned = binned_steps(steps, values, edges_s)
    mean = np.sum([mean for mean, _ in binned], axis=0) if binned else np.zeros(len(edges_s) - 1)
    if column == "kv_share":
        mean = np.divide(mean, there, out=np.zeros_like(mean), where=there > 0)
    if len(binned) == 1:
        axes.stairs(binned[0][1], edges_s, fill=True, color=color, alpha=0.22, linewidth=0)
    axes.plot(*outline(mean, edges_s), color=color, linewidth=0.9)


def outline(values: Column, edges: Column) -> tuple[Column, Column]:
    """Places and heights of a line over bins, which is quicker to draw than matplotlib's own stairs."""
    return np.repeat(edges, 2)[1:-1], np.repeat(values, 2)


def _draw_share(
    axes: Axes, result: Result, steps: pd.DataFrame, share: Callable[[pd.DataFrame], Column], color: str
) -> None:
    if not len(steps):
        return
    edges_s = np.linspace(0, _end_s(steps), NUM_BINS + 1)
    there = num_there(result, steps, edges_s)
    total = np.sum([mean for mean, _ in binned_steps(steps, share, edges_s)], axis=0)
    average = np.divide(total, there, out=np.zeros_like(total), where=there > 0)
    axes.plot(*outline(average, edges_s), color=color, linewidth=0.9)
    axes.axhline(float(total.sum() / there.sum()), color=color, linewidth=0.9, linestyle="--")
    axes.set_xlim(0, edges_s[-1])


def _end_s(steps: pd.DataFrame) -> float:
    return float((steps["start_s"] + steps["duration_s"]).max()) if len(steps) else 0.0
