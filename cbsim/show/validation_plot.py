"""A recorded run beside its simulation: latencies over the time of the run, and by percentile."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cbsim.results.run_log import Column
from cbsim.show.reader_tables import LATENCIES, SCALES
from cbsim.show.style import FAINT, PALETTE, drawing, head

NUM_PARTS = 40
"""Points of a line over time, each the mean of as many requests."""
_SHARES = np.linspace(0.0, 1.0, 201)
_WORLDS = {"recorded": {"color": PALETTE[0]}, "simulated": {"color": PALETTE[1], "linestyle": "--"}}


def recorded_picture(
    arrival_s: Column, recorded: Mapping[str, Column], simulated: Mapping[str, Column], title: str
) -> Figure:
    """A column a latency: its mean over the requests' arrivals, and its percentiles.

    `recorded` and `simulated` have a latency's seconds by request, in order of arrival; NaN where it has
    none.
    """
    with drawing(12, 6.6) as figure:
        panels = figure.subplots(2, len(recorded), squeeze=False)
        for name, (above, below) in zip(recorded, panels.T, strict=True):
            shown, unit = LATENCIES[name]
            worlds = {"recorded": recorded[name], "simulated": simulated[name]}
            for world, values in worlds.items():
                known = ~np.isnan(values)
                scaled = values[known] * SCALES[unit]
                if not len(scaled):
                    continue
                above.plot(
                    arrival_s[known], scaled, ".", markersize=2, alpha=0.25, color=_WORLDS[world]["color"]
                )
                above.plot(*_means(arrival_s[known], scaled), label=world, **_WORLDS[world])
                below.plot(100 * _SHARES, np.quantile(scaled, _SHARES), label=world, **_WORLDS[world])
            _mark_errors(below, recorded[name], simulated[name])
            above.set(xlabel="arrival (s)", ylabel=f"{shown} ({unit})", title=f"{shown} over time")
            below.set(xlabel="percentile", ylabel=f"{shown} ({unit})", title=f"{shown} by percentile")
            for axes in (above, below):
                axes.set_ylim(bottom=0)
        caption = f"Dots: requests; lines over time: means of {NUM_PARTS} parts alike in requests. %: error."
        head(figure, title, caption, panels[0, 0])
    return figure


def _means(arrival_s: Column, values: Column) -> tuple[list[float], list[float]]:
    """Mean arrival and mean value of each part of the requests."""
    num_parts = min(NUM_PARTS, len(values))
    parts = [
        (float(at.mean()), float(of.mean()))
        for at, of in zip(
            np.array_split(arrival_s, num_parts), np.array_split(values, num_parts), strict=True
        )
    ]
    return [at for at, _ in parts], [of for _, of in parts]


def _mark_errors(axes: Axes, recorded: Column, simulated: Column) -> None:
    """The simulation's error at p50, p90 and p99."""
    known, told = recorded[~np.isnan(recorded)], simulated[~np.isnan(simulated)]
    if not len(known) or not len(told):
        return
    for row, percentile in enumerate((50, 90, 99)):
        real, ours = np.quantile(known, percentile / 100), np.quantile(told, percentile / 100)
        axes.axvline(percentile, color=FAINT, linewidth=0.8, zorder=0)
        if real > 0:
            text, at = f"p{percentile} {100 * (ours / real - 1):+.1f}%", (percentile - 1, 0.03 + 0.07 * row)
            axes.text(*at, text, transform=axes.get_xaxis_transform(), ha="right", fontsize=8)
