"""A told stepper: each decision is told as it falls, and what can be seen then is true then."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cbsim.observers import ObservedRun, StepView
from cbsim.observers.audience import Audience
from cbsim.observers.views import SchedulerView
from cbsim.results.run_log import ADMITTED, FINISHED, PREEMPTED, RESUMED, RunLog
from cbsim.studies.experiment import Experiment
from cbsim.studies.run import make_cost_model
from cbsim.studies.setup import setup_of
from cbsim.studies.simulation import Told, simulate_core
from cbsim.testing import differences
from tests.observers.test_hooks import KINDS, crowd
from tests.observers.watched import StepNotes, row, setting
from tests.simulation import ListedWorkload

TOLD = {"admitted": (ADMITTED, RESUMED), "preempted": (PREEMPTED,), "finished": (FINISHED,)}


class Looks(StepNotes):
    """Compares what a step says with what the replica shows as it is told."""

    def on_run_start(self, run: ObservedRun) -> None:
        super().on_run_start(run)
        self.views: list[SchedulerView] = list(run.schedulers)
        self.num_waited = 0

    def before_step(self, now: float, step: StepView, replica: int) -> None:
        super().before_step(now, step, replica)
        view = self.views[replica]
        waiting, running = list(view.waiting), view.running
        assert len(waiting) == len(view.waiting) == step.num_waiting
        assert len(running) == view.num_running == step.num_running
        assert {part.request for part in step.slices} <= set(running)
        assert view.pool.num_used == step.kv_blocks_used == view.pool.num_blocks - view.pool.num_free
        assert not set(waiting) & set(running)
        self.num_waited += len(waiting)
        if waiting:
            assert view.waiting[0] is waiting[0]
        view.pool.check_integrity()


def run(kind: str, observer: Looks, **further: Any) -> tuple[RunLog, RunLog]:
    """The record of a run that is told of, and that of one that is not."""
    mapping = setting(num_blocks=12, scheduler={"type": kind, **further}, replicas={"count": 2})
    if kind == "static":
        mapping["scheduler"]["max_model_len"] = 24
    experiment = Experiment.from_mapping(mapping)
    setup = setup_of(experiment, ListedWorkload(crowd(60)), make_cost_model(experiment))
    told, *_ = simulate_core(setup, told=Told(Audience([observer]), "told", "tiny"))
    untold, *_ = simulate_core(replace(setup, workload=ListedWorkload(crowd(60))), "interpreted")
    return told, untold


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_told_is_what_the_record_says_and_what_can_be_seen(kind: str, is_async: bool) -> None:
    looks = Looks()
    log, untold = run(kind, looks, async_scheduling=is_async)
    assert differences(log, untold) == []
    assert looks.num_waited > 30
    names = log.requests["request_id"]
    events = list(zip(*(log.events[name].tolist() for name in ("time_s", "event", "request")), strict=True))
    for name, codes in TOLD.items():
        told = [call[:3] for call in looks.calls if call[1] == name]
        assert told == [(time_s, name, names[row]) for time_s, code, row in events if code in codes]


def test_of_two_steps_decided_at_once_the_first_is_told_before_the_second_is_decided() -> None:
    """At each look the request has as many tokens in flight as steps were decided and not ended."""
    num_in_flight = []

    class InFlight(StepNotes):
        def before_step(self, now: float, step: StepView, replica: int) -> None:
            num_in_flight.append((step.number, now, step.slices[0].request.num_in_flight_tokens))

    mapping = setting(scheduler={"type": "vllm", "async_scheduling": True})
    experiment = Experiment.from_mapping(mapping)
    workload = ListedWorkload([row("a", 0.5, 4, 3)])
    setup = setup_of(experiment, workload, make_cost_model(experiment))
    simulate_core(setup, told=Told(Audience([InFlight()]), "told", "tiny"))
    assert num_in_flight == [(0, 0.5, 1), (1, 0.5, 2), (2, 1.5, 2)]
