"""The pictures of a tune: what is served against its cost, and against each setting."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cbsim.show.chapter import Picture
from cbsim.show.style import FAINT, PALETTE, drawing, head, show_plain
from cbsim.show.tune_text import cost_figure, gain_figure
from cbsim.studies.labels import plain_text, short_keys
from cbsim.studies.tune.best_settings import IS_BEST, IS_MET, ON_FRONT, TuneAnswer

_MAX_KEYS = 6
"""Settings that have a panel."""
_ABOVE = 1.08
"""Times the highest figure: the upper end of its axis."""
_WIDE = 10
"""Values that span more than this factor get a logarithmic axis."""


def tune_pictures(answer: TuneAnswer) -> dict[str, Picture]:
    """Pictures by the names of their files; none where nothing ran."""
    ran = answer.table[answer.table["state"] == "ran"]
    if ran.empty:
        return {}
    front, keys = f"{answer.name}: what is served, and what it costs", f"{answer.name}: the settings tried"
    marks = "Marks tell what meets the SLO, the best and what is written"
    return {
        "front": Picture(_front(answer, ran, front), front, f"Each setting that ran in full. {marks}."),
        "keys": Picture(_by_key(answer, ran, keys), keys, f"What is served, against each setting. {marks}."),
    }


def _front(answer: TuneAnswer, ran: pd.DataFrame, title: str) -> Figure:
    gain, cost = gain_figure(answer), cost_figure(answer)
    with drawing(8, 4.6) as figure:
        axes = figure.subplots()
        _draw(axes, ran, ran[cost.key], ran[gain.key])
        front = ran[ran[ON_FRONT]].sort_values(cost.key)
        axes.step(
            front[cost.key], front[gain.key], where="post", color=PALETTE[0], linewidth=1, label="front"
        )
        axes.set(xlabel=cost.title, ylabel=gain.title)
        if _is_wide(ran[cost.key]):
            axes.set_xscale("log")
            show_plain(axes.xaxis)
        head(figure, title, _caption(answer), axes)
    return figure


def _by_key(answer: TuneAnswer, ran: pd.DataFrame, title: str) -> Figure:
    gain, keys = gain_figure(answer), answer.keys[:_MAX_KEYS]
    short = short_keys(answer.keys)
    num_columns = min(3, len(keys))
    num_rows = -(-len(keys) // num_columns)
    with drawing(3.7 * num_columns + 0.4, 0.9 + 2.8 * num_rows) as figure:
        panels = figure.subplots(num_rows, num_columns, squeeze=False, sharey=True)
        for axes, key in zip(panels.flat, keys, strict=False):
            _draw(axes, ran, _positions(axes, ran[key]), ran[gain.key])
            axes.set_xlabel(short[key])
        for axes in panels.flat[len(keys) :]:
            axes.set_visible(False)
        for row in panels:
            row[0].set_ylabel(gain.title)
        head(figure, title, _caption(answer), panels[0, 0])
    return figure


def _draw(axes: Axes, ran: pd.DataFrame, x: pd.Series[Any], y: pd.Series[Any]) -> None:
    """A mark for each run in full: within the SLO or not; the best and what is written stand out."""
    met = ran[IS_MET].astype(bool)
    axes.plot(x[~met], y[~met], "x", color=FAINT, markersize=5, label="SLO missed")
    axes.plot(x[met], y[met], "o", color=PALETTE[0], markersize=5, alpha=0.7, label="SLO met")
    written, best = ran["trial"] == 0, ran[IS_BEST].astype(bool)
    axes.plot(
        x[written], y[written], "s", color=PALETTE[4], markersize=8, mfc="none", mew=2, label="as written"
    )
    axes.plot(x[best], y[best], "*", color=PALETTE[1], markersize=13, label="best")
    axes.set_ylim(0, _ABOVE * float(y.max()))


def _positions(axes: Axes, values: pd.Series[Any]) -> pd.Series[Any]:
    """Where values lie along the axis, which is prepared for them: words and the like evenly."""
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        if _is_wide(values):
            axes.set_xscale("log", base=2)
            show_plain(axes.xaxis)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(5))
        return values
    names = sorted({plain_text(value) for value in values})
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.5, len(names) - 0.5)
    return values.map(lambda value: names.index(plain_text(value)))


def _is_wide(values: pd.Series[Any]) -> bool:
    known = values.dropna().to_numpy(np.float64)
    return bool(len(known) and known.min() > 0 and known.max() > _WIDE * known.min())


def _caption(answer: TuneAnswer) -> str:
    num_ran = int((answer.table["state"] == "ran").sum())
    given_up = int((answer.table["state"] == "given up").sum())
    behind = f"; {given_up} more fell behind on short windows" if given_up else ""
    promise = f" SLO: {answer.aim.slo.promise()}." if answer.aim.slo else ""
    return f"{num_ran} settings ran in full{behind}.{promise}"
