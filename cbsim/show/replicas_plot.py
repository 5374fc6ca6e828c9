"""Replicas that serve over simulated time, pool by pool, beside what arrives and what waits."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cbsim.results.result import Result
from cbsim.results.run_log import Column
from cbsim.show.style import PALETTE, drawing, head
from cbsim.show.timeline_plot import NUM_BINS, binned_steps

_AFTER = {
    **dict.fromkeys(("started", "draining"), "changing"),
    **dict.fromkeys(("ready", "repaired"), "serving"),
    **dict.fromkeys(("stopped", "failed"), "gone"),
}
"""What a replica does after an event; others leave that as it was."""
_CAPTION = (
    f"Arrivals and waiting requests: means over 1/{NUM_BINS} of the time. Replicas: dark, those that serve; "
    "light, those that start or drain. Crosses: failures; triangles: those that grow slow."
)


class Levels(NamedTuple):
    """How many replicas of a pool serve, and how many start or drain, from each instant on."""

    time_s: Column
    num_serving: Column
    num_changing: Column


def levels(events: pd.DataFrame, replicas: set[int]) -> Levels:
    """Of one pool; `replicas` are all that it ever has, `events` rows of `Result.replicas` about them.

    One whose first event is not its start, or its being ready, serves from the beginning on.
    """
    rows = events.sort_values("time_s", kind="stable")
    first = rows.drop_duplicates("replica")
    comes_later = first["replica"][first["event"].isin(["started", "ready"])]
    does = dict.fromkeys(replicas, "serving") | dict.fromkeys(comes_later, "gone")
    num = Counter(does.values())
    table = [(0.0, num["serving"], num["changing"])]
    for time_s, replica, event in zip(rows["time_s"], rows["replica"], rows["event"], strict=True):
        num[does[replica]] -= 1
        does[replica] = _AFTER.get(event, does[replica])
        num[does[replica]] += 1
        table.append((time_s, num["serving"], num["changing"]))
    return Levels(*np.array(table).T)


def comes_and_goes(result: Result) -> bool:
    """Whether replicas of a run started, stopped, failed or were slow."""
    return result.replicas is not None and bool((result.replicas["event"] != "ready").any())


def replicas_up(result: Result, label: str = "") -> Figure:
    """A panel of arrivals and queue, and one for each pool; `label` names the run where there are several."""
    events, steps = result.replicas, result.steps
    assert events is not None
    end_s = float(max((steps["start_s"] + steps["duration_s"]).max(), events["time_s"].max()))
    pools = [str(pool) for pool in pd.unique(pd.concat([steps["pool"], events["pool"]]).astype(str))]
    with drawing(11, 3.2 + 1.2 * len(pools)) as figure:
        traffic, *panels = figure.subplots(
            1 + len(pools), sharex=True, squeeze=False, height_ratios=[1.6, *[1] * len(pools)]
        )[:, 0]
        edges_s = np.linspace(0, end_s, NUM_BINS + 1)
        _draw_traffic(traffic, result, edges_s)
        for axes, pool in zip(panels, pools, strict=True):
            own = events[events["pool"] == pool]
            ever = {*own["replica"], *steps["replica"][steps["pool"] == pool]}
            _draw_pool(axes, levels(own, ever), own, end_s)
            axes.set_ylabel(pool)
        panels[-1].set_xlabel("simulated time (s)")
        panels[-1].set_xlim(0, end_s)
        head(figure, f"Replicas over time{label and f': {label}'}", _CAPTION)
    return figure


def _draw_traffic(axes: Axes, result: Result, edges_s: Column) -> None:
    per_s = np.histogram(result.requests["arrival_s"], edges_s)[0] / np.diff(edges_s)
    axes.stairs(per_s, edges_s, color=PALETTE[0], linewidth=0.9, baseline=None)
    axes.set_ylabel("arrivals/s", color=PALETTE[0])
    axes.set_ylim(0)
    beside = axes.twinx()
    waiting = binned_steps(result.steps, lambda frame: frame["num_waiting"].to_numpy(np.float64), edges_s)
    beside.stairs(np.sum([mean for mean, _ in waiting], axis=0), edges_s, color=PALETTE[1], baseline=None)
    beside.set_ylabel("waiting requests", color=PALETTE[1])
    beside.set_ylim(0)
    beside.grid(visible=False)


def _draw_pool(axes: Axes, of: Levels, events: pd.DataFrame, end_s: float) -> None:
    edges_s = np.append(of.time_s, max(end_s, of.time_s[-1]))
    whole = of.num_serving + of.num_changing
    axes.stairs(whole, edges_s, fill=True, color=PALETTE[2], alpha=0.25, linewidth=0)
    axes.stairs(of.num_serving, edges_s, fill=True, color=PALETTE[2], alpha=0.8, linewidth=0)
    for event, mark in (("failed", "x"), ("slowed", "^")):
        at_s = events["time_s"][events["event"] == event]
        axes.plot(at_s, np.zeros(len(at_s)), mark, color=PALETTE[1], markersize=7)
    top = 1.1 * max(1, whole.max())
    axes.set_ylim(-0.12 * top, top)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
