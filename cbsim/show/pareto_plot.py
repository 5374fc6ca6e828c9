"""The Pareto front of throughput and tail latency: the points that no other beats in both."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from cbsim.results.run_log import Column
from cbsim.show.figures import ITL, THROUGHPUT
from cbsim.show.style import FAINT, PALETTE, drawing, head, label

MAX_LABELS = 14
"""How many points of the front are named at most, spread evenly along it."""
_MIN_SPAN = 0.05
"""An axis shows at least this share of its largest value, so that figures that are the same look it."""
_MARGIN = 0.08
"""Room on either side of the points, as a share of their extent."""
_CROWDED = 0.03
"""Points nearer than this share of the front's extent have no room for labels of their own."""


def pareto_front(gain: Column, cost: Column) -> Column:
    """Which points have more gain than every point that costs no more: the indices, by rising cost."""
    order = np.lexsort((-gain, cost))
    best = np.maximum.accumulate(np.concatenate([[-np.inf], gain[order][:-1]]))
    front: Column = order[gain[order] > best]
    return front


def pareto_picture(table: pd.DataFrame, labels: list[str], title: str) -> Figure:
    """Throughput over p99 ITL of every point, named by `labels`; those on the front are joined and named."""
    named = table[[THROUGHPUT.key, ITL.key]].assign(name=labels).dropna(subset=[THROUGHPUT.key, ITL.key])
    gains, costs = (named[shown.key].to_numpy(np.float64) * shown.scale for shown in (THROUGHPUT, ITL))
    with drawing(10, 4.8) as figure:
        axes = figure.subplots()
        axes.plot(costs, gains, "o", color=FAINT, markersize=5)
        front = pareto_front(gains, costs)
        axes.step(costs[front], gains[front], where="post", color=PALETTE[0], linewidth=1)
        axes.plot(costs[front], gains[front], "o", color=PALETTE[0], markersize=6)
        shown = front[np.unique(np.linspace(0, len(front) - 1, MAX_LABELS).astype(int))]
        for first, last in _crowds(costs[shown], gains[shown]):
            text = str(first + 1)
            if last > first:
                text += f", {last + 1}" if last == first + 1 else f" to {last + 1}"
            label(axes, text, (costs[shown[first]], gains[shown[first]]))
        key = "\n".join(f"{number}  {named['name'].iloc[place]}" for number, place in enumerate(shown, 1))
        axes.text(1.02, 1, key, transform=axes.transAxes, va="top", fontsize=8, linespacing=1.5)
        axes.set(xlabel=ITL.title, ylabel=THROUGHPUT.title)
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        if len(costs) and _extent(costs) > 0 and _extent(gains) > 0:
            axes.set(xlim=_limits(costs), ylim=_limits(gains))
        caption = "Blue: no other point has more throughput without a longer p99. Grey: some other has."
        head(figure, title, caption)
    return figure


def _crowds(costs: Column, gains: Column) -> list[tuple[int, int]]:
    """First and last of each run of points along the front that one label must stand for."""
    room = [_CROWDED * max(_extent(values), np.finfo(float).tiny) for values in (costs, gains) if len(values)]
    crowds: list[tuple[int, int]] = []
    for place, at in enumerate(zip(costs, gains, strict=True)):
        first = crowds[-1][0] if crowds else 0
        begun = (costs[first], gains[first])
        is_far = any(abs(one - other) > least for one, other, least in zip(at, begun, room, strict=True))
        if is_far or not crowds:
            crowds.append((place, place))
        else:
            crowds[-1] = (first, place)
    return crowds


def _extent(values: Column) -> float:
    """The span that an axis must show of values."""
    return max(float(np.ptp(values)), _MIN_SPAN * float(np.abs(values).max()))


def _limits(values: Column) -> tuple[float, float]:
    """An axis around values, with a margin."""
    middle, half = (values.min() + values.max()) / 2, (0.5 + _MARGIN) * _extent(values)
    return float(middle - half), float(middle + half)
