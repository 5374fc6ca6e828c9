"""A scaling study: one experiment with more and more requests, running requests, and replicas."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import numpy as np
from pydantic import Field

from cbsim.base.errors import CbsimError, ConfigError
from cbsim.base.units import MEGA
from cbsim.lab.bench.work_timing import NUM_WARM_UP
from cbsim.studies.experiment import Experiment
from cbsim.studies.labels import label_values, point_name
from cbsim.studies.run import make_workload
from cbsim.workload import WORKLOADS
from cbsim.workload.request import RequestBatch
from cbsim.workload.request_source import MAX_REQUESTS, Trim
from cbsim.workload.trace import TraceWorkload

BACKLOG_RATE_SCALE = float(MEGA)
"""Arrivals this many times as fast leave no slot empty while requests are left."""
NUM_REQUESTS_EACH = 10_000
REPEATED = "cbsim.lab.bench.scaling:RepeatedTrace"


class Axis(StrEnum):
    """What a study varies."""

    REQUESTS = "requests"
    RUNNING = "running"
    REPLICAS = "replicas"

    @property
    def column(self) -> str:
        """What the values are called in a table."""
        return "max_num_seqs" if self is Axis.RUNNING else self.value


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
        unit = self.axis.value
        return f"{self.value:,} {unit.removesuffix('s') if self.value == 1 else unit}"

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
        points = experiment.points()
        swept, self._experiment = points[0]
        if swept:
            first = point_name(label_values([values for values, _ in points])[0], list(swept))
            self.notes.append(f"the first point of the sweep is scaled: {first}")
        self.config = self._experiment.resolved()
        """The experiment that is scaled, names and defaults spelled out."""
        if self.config.pop("stop_at_s") is not None:
            self.notes.append("stop_at_s is left out: every request is simulated to its end")
        if "max_num_seqs" not in self.config["scheduler"] and scales.running:
            scheduler = self.config["scheduler"]["type"]
            self.notes.append(f"running is left out: scheduler '{scheduler}' has no max_num_seqs")
            scales = replace(scales, running=())
        self.points = self._make_points(scales)
        self._tell_axes(scales)

    def _make_points(self, scales: Scales) -> list[ScalePoint]:
        problems: list[str] = []
        points = []
        for axis in Axis:
            for value in getattr(scales, axis.value):
                num_requests = value
                if axis is not Axis.REQUESTS:
                    num_replicas = value if axis is Axis.REPLICAS else self._experiment.replicas.count
                    num_requests = num_replicas * scales.num_requests_each
                settings, small = (self._scaled(axis, value, n) for n in (num_requests, NUM_WARM_UP))
                points.append(ScalePoint(axis, value, settings, small))
                problems += [f"--{axis} {value}: {problem}" for problem in _problems(points[-1])]
        if problems:
            raise ConfigError(*problems)
        return points

    def _scaled(self, axis: Axis, value: int, num_requests: int) -> dict[str, Any]:
        settings = copy.deepcopy(self.config)
        workload, replicas = settings["workload"], settings["replicas"]
        _set_requests(workload, num_requests)
        num_replicas, num_clients, growth = replicas["count"], workload["concurrency"], 1.0
        if axis is Axis.RUNNING:
            # None of the slots of each replica is empty while requests are left.
            settings["scheduler"]["max_num_seqs"] = value
            growth = BACKLOG_RATE_SCALE
            if num_clients is not None:
                num_clients = 2 * value * num_replicas
                workload["think_time_s"] = 0.0
        elif axis is Axis.REPLICAS:
            # Each has as many arrivals as one has now.
            replicas["count"] = value
            growth = value / num_replicas
            num_clients = num_clients and max(1, round(growth * num_clients))
        if num_clients is None:
            workload["rate_scale"] *= growth
        else:
            workload["concurrency"] = num_clients
        return settings

    def _tell_axes(self, scales: Scales) -> None:
        each = f"{scales.num_requests_each:,} requests"
        workload = make_workload(self._experiment)
        if type(workload) is TraceWorkload:
            num_source = workload.num_requests()
            repeated = "for more it is repeated, each time later by its length"
            if any(point.num_requests > num_source for point in self.points):
                self.notes.append(f"the trace has {num_source:,} requests: {repeated}")
        if scales.running:
            self.notes.append(
                f"running: {each} a replica, all there from the start, so that some always wait for a slot"
            )
        if scales.replicas:
            self.notes.append(f"replicas: {each} and as many arrivals a second for each of them")


def _set_requests(workload: dict[str, Any], num_requests: int) -> None:
    """That number, whatever window or limit there was; those of a trace choose what is repeated."""
    kind = WORKLOADS.get(workload["type"])
    if kind is TraceWorkload:
        workload |= {"type": REPEATED, "num_requests": num_requests}
    elif "num_requests" not in workload:
        workload["limit"] = num_requests
    else:
        workload["num_requests"] = num_requests
        if not issubclass(kind, TraceWorkload):
            workload |= {"start_s": 0.0, "end_s": None, "limit": None}
        if "duration_s" in workload:
            workload["duration_s"] = None


def _problems(point: ScalePoint) -> list[str]:
    """What is wrong with the experiment of a point."""
    try:
        experiment = Experiment.from_mapping(point.settings)
        if "num_requests" not in point.settings["workload"]:
            num_requests = make_workload(experiment).num_requests()
            if num_requests is not None and num_requests < point.num_requests:
                name = experiment.workload.type.rpartition("/")[2]
                return [f"workload '{name}' has no more than {num_requests:,} requests"]
    except CbsimError as error:
        return [problem.removeprefix("config: ") for problem in error.problems]
    if point.num_requests > MAX_REQUESTS:
        return [f"makes {point.num_requests:,} requests; expected at most {MAX_REQUESTS:,}"]
    return []


class RepeatedTrace(TraceWorkload):
    """Replays a trace lap after lap, each lap's arrivals later by its length and one mean gap.

    Requests, sessions and prompts of later laps bear other names, so that within each lap prompts share what
    they share in the trace, and nothing with an earlier lap.
    """

    class Config(TraceWorkload.Config):
        """Settings of a repeated trace; window and limit choose what is repeated."""

        type: str = "cbsim.lab.bench.scaling:RepeatedTrace"
        num_requests: int = Field(ge=1, le=MAX_REQUESTS)
        """How many requests, in all laps."""

    config: Config

    def batches(self) -> Iterator[RequestBatch]:
        """The file is read when the first batch is asked for; raises as `TraceWorkload.batches`."""
        if not self._num_in_window:
            yield from super().batches()
        whole = {"start_s": 0.0, "end_s": None, "limit": self.config.num_requests}
        self._trim = Trim(self.config.model_copy(update=whole))
        yield from self._trim.apply(self._laps())

    def num_requests(self) -> int:
        """As many as asked for."""
        return self.config.num_requests

    def notes(self) -> list[str]:
        """What reading left out or sorted, how often the trace was repeated, and what the caps cut."""
        num_laps = self.num_requests() / super().num_requests()
        return [*super().notes(), *([f"trace replayed {num_laps:.3g} times"] if num_laps > 1 else [])]

    def _laps(self) -> Iterator[RequestBatch]:
        first, _ = Trim(self.config).window(self._table.arrival_s)
        num_source = super().num_requests()
        arrival_s = self._table.arrival_s[first : first + num_source]
        span_s = float(arrival_s[-1] - arrival_s[0])
        lap_s = span_s + span_s / max(1, num_source - 1)
        for lap in itertools.count():
            row = 0
            for batch in self._table.batches():
                start, stop = max(0, first - row), min(len(batch), first + num_source - row)
                row += len(batch)
                if stop > start:
                    yield _later(batch.part(start, stop), lap, lap * lap_s - self.config.start_s)


def _later(batch: RequestBatch, lap: int, shift_s: float) -> RequestBatch:
    """Requests of a lap from 0, all arrivals shifted, all names but the first lap's their own."""
    moved = replace(batch, arrival_s=batch.arrival_s + shift_s)
    if lap == 0:
        return moved
    mark = f"#{lap + 1}"
    names = np.array(batch.names(), dtype=np.object_) + mark
    sessions, prompts = batch.session_id, batch.prompt
    if sessions is not None:
        sessions = np.array([name and name + mark for name in sessions], dtype=np.object_)
    if prompts is not None:
        prompts = [p and tuple((f"{name}{mark}", num_tokens) for name, num_tokens in p) for p in prompts]
    return replace(moved, request_id=names, session_id=sessions, prompt=prompts)
