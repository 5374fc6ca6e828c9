"""A scaling study: one experiment with more and more requests, running requests, and replicas."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from cbsim.bench.measure import NUM_WARM_UP
from cbsim.errors import CbsimError, ConfigError
from cbsim.experiment import Experiment
from cbsim.run import make_workload
from cbsim.units import MEGA
from cbsim.workload import WORKLOADS
from cbsim.workload.base import MAX_REQUESTS
from cbsim.workload.trace import TraceWorkload

BACKLOG_RATE_SCALE = float(MEGA)
"""Arrivals so many times as fast leave no slot empty while requests are left."""
NUM_REQUESTS_EACH = 10_000
REPEATED = "cbsim.bench.repeated:RepeatedTrace"


class Axis(StrEnum):
    """What a study varies."""

    REQUESTS = "requests"
    RUNNING = "running"
    REPLICAS = "replicas"


@dataclass(frozen=True, slots=True)
class Scales:
    """The values along each axis, rising; none for an axis to leave out."""

    requests: tuple[int, ...] = (1_000, 10_000, 100_000)
    running: tuple[int, ...] = (16, 64, 256)
    replicas: tuple[int, ...] = (1, 4, 16)

    @property
    def num_requests_each(self) -> int:
        """Requests of a replica along the other axes: the middle value of `requests`, else 10,000."""
        return self.requests[(len(self.requests) - 1) // 2] if self.requests else NUM_REQUESTS_EACH


@dataclass(frozen=True, slots=True)
class ScalePoint:
    """One experiment of a study."""

    axis: Axis
    value: int
    settings: dict[str, Any] = field(repr=False)
    """The experiment, as `cbsim.run` takes it."""
    small: dict[str, Any] = field(repr=False)
    """The same with few requests, to warm up."""

    @property
    def label(self) -> str:
        """What it is in words."""
        unit = {Axis.REQUESTS: "request", Axis.RUNNING: "running", Axis.REPLICAS: "replica"}[self.axis]
        return f"{self.value:,} {unit}" + "s" * (self.value != 1 and self.axis is not Axis.RUNNING)

    @property
    def num_requests(self) -> int:
        """How many requests it simulates."""
        workload = self.settings["workload"]
        return int(workload.get("num_requests") or workload["limit"])


def parse_values(option: str, text: str) -> tuple[int, ...]:
    """The values after an option, `1000,10000`, rising and each once. Raises `ConfigError`."""
    parts = [part.strip() for part in text.split(",")]
    wrong = [part for part in parts if not (part.isdecimal() and 1 <= int(part) <= MAX_REQUESTS)]
    if wrong:
        raise ConfigError(
            f"{option}: got '{wrong[0]}'; expected whole numbers from 1 to {MAX_REQUESTS:,}, as in 1,10,100"
        )
    return tuple(sorted({int(part) for part in parts}))


class Study:
    """The points of a study, and what a reader must know of them.

    Raises `ConfigError` with a line for each point that is no right experiment.
    """

    def __init__(self, experiment: Experiment, scales: Scales) -> None:
        self.name = experiment.name
        self.notes: list[str] = []
        if experiment.sweep:
            self.notes.append("the first point of the sweep is scaled")
        self._experiment = experiment.points()[0][1]
        self._scales = scales
        self._base = self._experiment.resolved()
        if self._base.pop("stop_at_s") is not None:
            self.notes.append("stop_at_s is left out: every request is simulated to its end")
        self.points = list(self._checked_points())
        self._tell_axes()

    @property
    def config(self) -> dict[str, Any]:
        """The experiment that is scaled, names and defaults spelled out."""
        return self._base

    def _checked_points(self) -> Iterator[ScalePoint]:
        problems: list[str] = []
        makers: dict[Axis, Callable[[int, int], dict[str, Any]]] = {
            Axis.REQUESTS: lambda value, few: self._settings(few or value),
            Axis.RUNNING: lambda value, few: self._running(value, few),
            Axis.REPLICAS: lambda value, few: self._replicas(value, few),
        }
        points = []
        for axis, make in makers.items():
            for value in getattr(self._scales, axis):
                point = ScalePoint(axis, value, make(value, 0), make(value, NUM_WARM_UP))
                problems += [f"--{axis} {value}: {problem}" for problem in _problems(point)]
                points.append(point)
        if problems:
            raise ConfigError(*problems)
        yield from points

    def _settings(self, num_requests: int) -> dict[str, Any]:
        """The experiment with so many requests."""
        settings = copy.deepcopy(self._base)
        workload = settings["workload"]
        kind = WORKLOADS.get(workload["type"])
        if kind is TraceWorkload:
            workload |= {"type": REPEATED, "num_requests": num_requests}
        elif issubclass(kind, TraceWorkload):
            workload["num_requests"] = num_requests
        elif "num_requests" in workload:
            workload |= {"num_requests": num_requests, "start_s": 0.0, "end_s": None, "limit": None}
            if "duration_s" in workload:
                workload["duration_s"] = None
        else:
            workload["limit"] = num_requests
        return settings

    def _running(self, max_num_seqs: int, few: int) -> dict[str, Any]:
        """With so many slots on each replica, none of them ever empty."""
        count = self._experiment.replicas.count
        settings = self._settings(few or count * self._scales.num_requests_each)
        settings["scheduler"]["max_num_seqs"] = max_num_seqs
        workload = settings["workload"]
        if workload["concurrency"] is None:
            workload["rate_scale"] *= BACKLOG_RATE_SCALE
        else:
            workload |= {"concurrency": 2 * count * max_num_seqs, "think_time_s": 0.0}
        return settings

    def _replicas(self, count: int, few: int) -> dict[str, Any]:
        """With so many replicas, each with as many requests and arrivals as one has now."""
        settings = self._settings(few or count * self._scales.num_requests_each)
        growth = count / self._experiment.replicas.count
        settings["replicas"]["count"] = count
        workload = settings["workload"]
        if workload["concurrency"] is None:
            workload["rate_scale"] *= growth
        else:
            workload["concurrency"] = max(1, round(growth * workload["concurrency"]))
        return settings

    def _tell_axes(self) -> None:
        each = f"{self._scales.num_requests_each:,} requests"
        if type(make_workload(self._experiment)) is TraceWorkload:
            num_source = make_workload(self._experiment).num_requests() or 0
            if any(point.num_requests > num_source for point in self.points):
                self.notes.append(
                    f"the trace has {num_source:,} requests: for more it is repeated, each time later by "
                    "its length"
                )
        if self._scales.running:
            self.notes.append(
                f"running: {each} a replica, all there from the start, so that some always wait for a slot"
            )
        if self._scales.replicas:
            self.notes.append(f"replicas: {each} and as many arrivals a second for each of them")


def _problems(point: ScalePoint) -> list[str]:
    """What is wrong with the experiment of a point."""
    try:
        experiment = Experiment.from_mapping(point.settings)
        if "num_requests" not in point.settings["workload"]:
            num_requests = make_workload(experiment).num_requests()
            if num_requests is not None and num_requests < point.num_requests:
                return [f"workload '{experiment.workload.type}' has no more than {num_requests:,} requests"]
    except CbsimError as error:
        return [problem.removeprefix("config: ") for problem in error.problems]
    if point.num_requests > MAX_REQUESTS:
        return [f"makes {point.num_requests:,} requests; expected at most {MAX_REQUESTS:,}"]
    return []
