"""The pictures of runs, overlaid or one below the other, and how two processes share the drawing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import BrokenExecutor, Executor
from contextlib import suppress
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from cbsim.results.output import POINTS
from cbsim.results.result import Result, load_run
from cbsim.show.latency_plot import latency_cdfs
from cbsim.show.style import save_figures
from cbsim.show.timeline_plot import timeline, utilization

Limits = Mapping[str, Any]
"""What an SLO promises, as `SloConfig.limits` gives it."""

RUN_PICTURES: Mapping[str, Callable[[Mapping[str, Result], Limits], Figure]] = {
    "latency_cdfs": latency_cdfs,
    "timeline": lambda runs, _: timeline(runs),
    "utilization": lambda runs, _: utilization(runs),
}
"""By the names of their files."""
_HALF = ("timeline",)
"""Those that take about as long as the others together."""


def draw_runs(
    runs: Mapping[str, Result], limits: Limits, folder: Path, names: Iterable[str] = RUN_PICTURES
) -> list[str]:
    """Draw the named pictures of runs under their labels; returns the names of the PNG files."""
    return save_figures({name: RUN_PICTURES[name](runs, limits) for name in names}, folder)


def draw_points(
    points: Mapping[str, str], limits: Limits, folder: Path, executor: Executor | None = None
) -> list[str]:
    """Draw `RUN_PICTURES` of points of the sweep in `folder`, `points` giving the name of each by its label.

    With an `executor` another process draws some of them. Returns the names of the PNG files.
    """
    names = tuple(RUN_PICTURES)
    with suppress(BrokenExecutor):
        if executor is not None:
            theirs = executor.submit(_draw_some, points, limits, folder, [n for n in names if n not in _HALF])
            drawn = _draw_some(points, limits, folder, _HALF) + theirs.result()
            return sorted(drawn, key=[f"{name}.png" for name in names].index)
    return _draw_some(points, limits, folder, names)


def _draw_some(points: Mapping[str, str], limits: Limits, folder: Path, names: Iterable[str]) -> list[str]:
    runs = {label: load_run(folder / POINTS / point) for label, point in points.items()}
    return draw_runs(runs, limits, folder, names)
