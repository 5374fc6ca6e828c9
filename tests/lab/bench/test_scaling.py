"""The points of a scaling study are the experiments that they should be."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cbsim.base.errors import ConfigError
from cbsim.lab.bench.scaling import Axis, Scales, Study, parse_values
from cbsim.studies.experiment import Experiment
from cbsim.studies.run import make_workload, simulate
from cbsim.workload import Workload, WorkloadConfig
from cbsim.workload.request import Request
from tests.lab.bench.small import GENERATOR, SMALL, TIMED, experiment


@pytest.mark.parametrize("kind", ["generator", "timed", "window", "closed loop", "trace", "resampled"])
def test_every_point_has_the_requests_and_the_arrivals_it_should(kind: str, trace: Path) -> None:
    workload: dict[str, Any] = {
        "generator": GENERATOR,
        "timed": TIMED,
        "window": GENERATOR | {"start_s": 1.0, "end_s": 2.0, "limit": 3},
        "closed loop": GENERATOR | {"concurrency": 4, "think_time_s": 1.0},
        "trace": {"type": "trace", "path": str(trace), "limit": 8},
        "resampled": {"type": "resampled", "path": str(trace), "block_requests": 2},
    }[kind]
    points = Study(experiment(workload, replicas={"count": 2}, stop_at_s=3.0), SMALL).points
    assert [(point.axis, point.value) for point in points] == [
        *((Axis.REQUESTS, value) for value in SMALL.requests),
        *((Axis.RUNNING, value) for value in SMALL.running),
        *((Axis.REPLICAS, value) for value in SMALL.replicas),
    ]
    assert [point.num_requests for point in points] == [5, 30, 50, 60, 60, 30, 90]
    spans = {}
    for point in points:
        scaled = Experiment.from_mapping(point.settings)
        arrivals = [request.arrival_s for request in make_workload(scaled).requests()]
        assert len(arrivals) == make_workload(scaled).num_requests() == point.num_requests
        assert sum(1 for _ in make_workload(Experiment.from_mapping(point.small)).requests()) == 20
        spans[point.axis, point.value] = arrivals[-1] - arrivals[0]
        assert scaled.stop_at_s is None
        assert scaled.replicas.count == (point.value if point.axis is Axis.REPLICAS else 2)
        if point.axis is Axis.RUNNING:
            assert scaled.scheduler.max_num_seqs == point.value  # type: ignore[attr-defined]
    if kind == "closed loop":
        clients = [point.settings["workload"]["concurrency"] for point in points]
        assert clients == [4, 4, 4, 8, 16, 2, 6]
    else:
        # As long as before with three times the requests; with one replica of two, half the pace.
        assert spans[Axis.REPLICAS, 1] == pytest.approx(2 * spans[Axis.REQUESTS, 30])
        assert spans[Axis.REPLICAS, 3] == pytest.approx(spans[Axis.REPLICAS, 1], rel=0.35)
        assert spans[Axis.RUNNING, 2] < 0.01


@pytest.mark.parametrize("scheduler", ["static", "continuous", "chunked_prefill", "preemptive", "vllm"])
@pytest.mark.parametrize("concurrency", [None, 1])
def test_slots_are_full_along_the_axis_of_running_requests(scheduler: str, concurrency: int | None) -> None:
    config = experiment(GENERATOR | {"concurrency": concurrency}, scheduler={"type": scheduler})
    for point in Study(config, Scales((200,), (2, 8), ())).points[1:]:
        scaled = Experiment.from_mapping(point.settings)
        log, _ = simulate(scaled, make_workload(scaled))
        assert 0.9 * point.value < log.steps["num_running"].mean() <= point.value


def test_what_is_told_of_a_study(trace: Path) -> None:
    config = experiment({"type": "trace", "path": str(trace)}, stop_at_s=9.0, sweep={"seed": [3, 4]})
    study = Study(config, SMALL)
    assert study.notes == [
        "the first point of the sweep is scaled: seed 3",
        "stop_at_s is left out: every request is simulated to its end",
        "the trace has 9 requests: for more it is repeated, each time later by its length",
        "running: 30 requests a replica, all there from the start, so that some always wait for a slot",
        "replicas: 30 requests and as many arrivals a second for each of them",
    ]
    assert study.config["seed"] == 3
    assert Study(experiment(GENERATOR), Scales((5,), (), ())).notes == []


def test_points_that_are_no_experiment_are_told_all_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Study(experiment(GENERATOR), Scales((5, 6, 2 * 10**9), (), (1, 10**9)))
    assert caught.value.problems == (
        "--requests 2000000000: workload.num_requests: got 2000000000; expected an integer >= 1 and "
        "<= 1,000,000,000 or null",
        "--replicas 1000000000: workload.num_requests: got 6000000000; expected an integer >= 1 and "
        "<= 1,000,000,000 or null",
        "--replicas 1000000000: replicas.count: got 1000000000; expected at most 10,000 (more than any "
        "cluster serves with)",
    )


class Dozen(Workload):
    """A plug-in's workload: its twelve requests, and a limit."""

    Config = WorkloadConfig

    def requests(self) -> Iterator[Request]:
        return (Request(f"r{i}", float(i), 10, 2) for i in range(self.num_requests()))

    def num_requests(self) -> int:
        return min(12, self.config.limit or 12)


def test_a_workload_that_cannot_be_made_longer_says_so() -> None:
    name = f"{Dozen.__module__}:{Dozen.__name__}"
    points = Study(experiment({"type": name}), Scales((5, 12), (), (2,))).points
    assert [point.num_requests for point in points] == [5, 12, 10]
    with pytest.raises(ConfigError) as caught:
        Study(experiment({"type": name}), Scales((5, 7, 13), (), (2,)))
    assert caught.value.problems == (
        f"--requests 13: workload '{name}' has no more than 12 requests",
        f"--replicas 2: workload '{name}' has no more than 12 requests",
    )


def test_a_scheduler_without_slots_has_no_such_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    config = experiment(GENERATOR)
    settings = config.resolved()
    del settings["scheduler"]["max_num_seqs"]
    monkeypatch.setattr(Experiment, "resolved", lambda self: copy.deepcopy(settings))
    study = Study(config, SMALL)
    assert study.notes[0] == "running is left out: scheduler 'vllm' has no max_num_seqs"
    assert Axis.RUNNING not in {point.axis for point in study.points}


def test_values_after_an_option() -> None:
    assert parse_values("--requests", "100, 10,100") == (10, 100)
    for text in ("", "1,,2", "0", "1e3", "-1", "1000000001"):
        with pytest.raises(ConfigError, match=r"--running: got .*; expected whole numbers from 1 to"):
            parse_values("--running", text)
