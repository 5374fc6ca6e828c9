"""The pictures that suit a sweep: what its settings do, and which points no other beats."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cbsim.show.chapter import Picture
from cbsim.show.heat_plot import heat_maps
from cbsim.show.pareto_plot import pareto_picture
from cbsim.show.rate_plot import rate_panels
from cbsim.show.sweep_plot import sweep_curves
from cbsim.show.sweep_points import Sweep
from cbsim.studies.labels import point_name, short_keys

if TYPE_CHECKING:
    import pandas as pd

RATE_KEYS = {
    "workload.rate_scale": "rate_scale: times the workload's rate",
    "workload.arrivals.rate_per_s": "requests/s offered",
}
_CURVES = ("ttft_s.p99", "itl_s.p99", "goodput_per_s")
_MIN_POINTS = 3
"""Fewer points have no front."""


def sweep_pictures(sweep: Sweep, name: str) -> dict[str, Picture]:
    """Pictures by the names of their files: along a rate, over two settings or along one, and the front."""
    pictures = {}
    settings = _of_settings(sweep, name)
    if settings is not None:
        pictures["settings"] = settings
    if len(sweep.points) >= _MIN_POINTS:
        labels = [sweep.name(row) for row in sweep.records()]
        title = f"{name}: throughput against p99 ITL"
        described = (
            "Each point by its throughput and its p99 gap between tokens; those that no other beats in both "
            "are joined and named."
        )
        pictures["pareto"] = Picture(pareto_picture(sweep.points, labels, title), title, described)
    return pictures


def _of_settings(sweep: Sweep, name: str) -> Picture | None:
    """What the one or two settings do that are numbers."""
    points = sweep.points
    numeric = [key for key in sweep.keys if _is_numeric(points, key) and points[key].nunique() > 1]
    rate = next((key for key in numeric if key in RATE_KEYS), None)
    if rate is not None:
        others = [key for key in sweep.keys if key != rate]
        return _along_rate(sweep, rate, others, name)
    if len(sweep.keys) == 2 and len(numeric) == 2:
        y, x = sorted(numeric, key=lambda key: (key.endswith("max_tokens_per_step"), points[key].nunique()))
        title = f"{name}: {_short(x)} and {_short(y)}"
        described = f"Heat maps of goodput, p99 TTFT and p99 ITL over {_short(x)} and {_short(y)}."
        return Picture(heat_maps(points, x, y, title), title, described)
    if len(numeric) == 1 and len(sweep.keys) <= 2 and (points[numeric[0]] > 0).all():
        series = next((key for key in sweep.keys if key != numeric[0]), "series")
        table = points if series in points else points.assign(series=name)
        title = f"{name}: what {_short(numeric[0])} does"
        described = f"p99 TTFT, p99 ITL and goodput along {_short(numeric[0])}."
        return Picture(sweep_curves(table, numeric[0], series, _CURVES, title), title, described)
    return None


def _along_rate(sweep: Sweep, rate: str, others: list[str], name: str) -> Picture:
    labels = [point_name(row, others) if others else name for row in sweep.records()]
    curves = sweep.points.assign(rate_per_s=sweep.points[rate], contender=labels)
    title = f"{name}: what a request rate does"
    described = (
        "p99 of TTFT, TPOT and ITL with the SLO's limits, throughput, goodput and the share within the SLO, "
        "against the rate."
    )
    figure, _ = rate_panels(curves, sweep.slo, title, "", RATE_KEYS[rate])
    return Picture(figure, title, described)


def _is_numeric(points: pd.DataFrame, key: str) -> bool:
    import pandas as pd

    return pd.api.types.is_numeric_dtype(points[key]) and not pd.api.types.is_bool_dtype(points[key])


def _short(key: str) -> str:
    return short_keys([key])[key]
