"""Observers change nothing: the same run to the last bit, by the same core."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simpy

from cbsim.core.building import RouterParts
from cbsim.core.layout import LEAST_KV
from cbsim.observers import OBSERVERS, Observer
from cbsim.results.run_log import ADMITTED, ARRIVED, FINISHED, PREEMPTED, RESUMED, RunLog
from cbsim.schedulers import SCHEDULERS
from cbsim.studies.core_log import stepwise_log
from cbsim.studies.setup import Setup
from cbsim.studies.simulation import simulate_core, step_through, stepwise
from cbsim.testing import Case, differences, draw_case
from tests.core.drawn import IrregularCost
from tests.observers.test_hooks import KINDS, crowd
from tests.observers.watched import Notes, StateNotes, StepNotes, row, setting, watch

ROWS = crowd(60)


def observers() -> list[Observer]:
    built_in = [
        OBSERVERS.get(name)(None, **{"file": "log.txt"} if name == "log" else {})
        for name in OBSERVERS.builtin_names()
    ]
    return [Notes(), StepNotes(), StateNotes(), *built_in]


@pytest.mark.parametrize(("num_replicas", "concurrency"), [(1, 7), (3, None)])
@pytest.mark.parametrize("kind", KINDS)
def test_results_are_those_of_a_run_that_nobody_watches(
    kind: str, num_replicas: int, concurrency: int | None
) -> None:
    for is_async in (False, True):
        mapping = setting(
            scheduler={"type": kind, "async_scheduling": is_async},
            num_blocks=12,
            replicas={"count": num_replicas, "router": "least_outstanding"},
        )
        mapping["kv_cache"]["prefix_caching"] = kind in ("vllm", "preemptive")
        if kind == "static":
            mapping["scheduler"]["max_model_len"] = 24
        alone = watch(mapping, ROWS, concurrency=concurrency)
        assert differences(alone, watch(mapping, ROWS, *observers(), concurrency=concurrency)) == []
        assert differences(alone, watch(mapping, ROWS, Notes(), concurrency=concurrency)) == []
        assert len(alone.steps["step"]) > 30


@pytest.mark.parametrize("stop_at_s", [3.5, 8.0])
def test_so_are_those_of_a_run_that_is_stopped(stop_at_s: float) -> None:
    mapping = setting(num_blocks=12, stop_at_s=stop_at_s)
    notes = Notes()
    assert differences(watch(mapping, ROWS), watch(mapping, ROWS, notes, *observers())) == []
    assert notes.ended_at_s == [stop_at_s]


MODULE = '''
from cbsim.schedulers.vllm import VllmScheduler

class Restless(VllmScheduler):
    """Wants to be asked again at an instant that has passed."""

    def wake_at_s(self):
        return 0.25
'''


@pytest.mark.parametrize("observer", [Notes(), StepNotes(), StateNotes()])
def test_so_is_that_of_a_scheduler_that_wants_to_be_asked_again(
    observer: Notes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A static batch starts 2.5 s after its oldest request came, though nobody else comes."""
    scheduler = {"type": "static", "batch_timeout_s": 2.5, "max_model_len": 24, "async_scheduling": False}
    rows = [row("a", 1.0, 4, 2), row("b", 2.0, 4, 1), row("c", 30.0, 4, 1)]
    alone = watch(setting(scheduler=scheduler), rows)
    assert alone.steps["start_s"].tolist() == [3.5, 4.5, 32.5]
    assert differences(alone, watch(setting(scheduler=scheduler), rows, observer)) == []
    (tmp_path / "restless_schedulers.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    scheduler = {"type": "restless_schedulers:Restless", "async_scheduling": False}
    alone = watch(setting(scheduler=scheduler), rows)
    assert alone.steps["start_s"].tolist() == [1.0, 2.0, 30.0]
    assert differences(alone, watch(setting(scheduler=scheduler), rows, observer)) == []


def drawn(kind: str, seed: int, num_replicas: int) -> Case:
    """A small and tight open-loop case of the conformance kit."""
    case = draw_case(np.random.default_rng(seed), SCHEDULERS.get(kind).Config, {})
    return replace(case, concurrency=None, num_replicas=num_replicas)


def run_stepwise(case: Case, kind: str) -> RunLog:
    setup = irregular(case, kind)
    world = stepwise(setup)
    step_through(world, setup)
    return stepwise_log(world, setup)


def irregular(case: Case, kind: str) -> Setup:
    setup = case.make_setup(SCHEDULERS.get(kind))
    return replace(setup, cost=IrregularCost(), router=RouterParts(LEAST_KV))


@pytest.mark.parametrize("kind", KINDS)
def test_replicas_in_order_of_time_give_what_replicas_of_their_own_and_the_core_do(kind: str) -> None:
    for seed in range(6):
        case = drawn(kind, seed, 1 + seed % 3)
        log, *_ = simulate_core(irregular(case, kind), "interpreted")
        assert differences(log, run_stepwise(case, kind)) == [], f"{case!r}"


@pytest.fixture
def num_events(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by an item for each SimPy event."""
    counted: list[int] = []
    schedule = simpy.Environment.schedule

    def count(*args: Any, **kwargs: Any) -> None:
        counted.append(1)
        schedule(*args, **kwargs)

    monkeypatch.setattr(simpy.Environment, "schedule", count)
    return counted


class Ends(Observer):
    def on_finished(self, now: float, request: Any, replica: int) -> None:
        """Hears of the end of requests."""


@pytest.mark.parametrize("concurrency", [None, 3])
@pytest.mark.parametrize("observers", [[], [Ends()], [StepNotes()], [StateNotes()]])
def test_a_run_has_no_simpy_event_watched_or_not(
    observers: list[Observer], concurrency: int | None, num_events: list[int]
) -> None:
    rows = [row(f"r{i}", 0.0, 8, 20) for i in range(20)]
    watch(setting(replicas={"count": 2}), rows, *observers, concurrency=concurrency)
    assert not num_events


@pytest.mark.parametrize("kind", KINDS)
def test_hooks_tell_what_the_record_does(kind: str) -> None:
    """The same decisions and results, at the same instants, in the same order for each replica."""
    codes = {
        "arrived": [ARRIVED],
        "admitted": [ADMITTED, RESUMED],
        "preempted": [PREEMPTED],
        "finished": [FINISHED],
    }
    for seed in range(12):
        case = drawn(kind, seed, 2)
        notes = StepNotes()
        mapping = setting(
            scheduler={"type": kind, **case.settings},
            kv_cache={
                "num_blocks": case.num_blocks,
                "block_size": case.block_size,
                "prefix_caching": case.prefix_caching,
            },
            replicas={"count": 2},
        )
        log = watch(mapping, case.requests, notes)
        names = log.requests["request_id"]
        for replica in range(2):
            for told, meant in codes.items():
                events = log.events
                rows = [
                    i
                    for i, code in enumerate(events["event"])
                    if code in meant and events["replica"][i] == replica
                ]
                expected = [(events["time_s"][i], names[events["request"][i]]) for i in rows]
                calls = [(c[0], c[2]) for c in notes.calls if c[1] == told and c[3] == replica]
                assert sorted(calls) == sorted(expected) if told == "arrived" else calls == expected
        first = {c[2]: c[0] for c in notes.calls if c[1] == "first token"}
        got = log.requests["first_token_at_s"]
        assert first == {names[i]: got[i] for i in range(len(names)) if got[i] == got[i]}
        ended = [(c[0], c[2]) for c in notes.calls if c[1] == "after" and c[3] == 0]
        own = log.steps["replica"] == 0
        ends = (log.steps["start_s"] + log.steps["duration_s"])[own].tolist()
        assert ended == list(zip(ends, log.steps["step"][own].tolist(), strict=True))


def test_two_observed_runs_in_one_process_do_not_touch_each_other() -> None:
    inner = StepNotes()

    class Outer(StepNotes):
        def on_admitted(self, now: float, request: Any, replica: int) -> None:
            super().on_admitted(now, request, replica)
            if request.request_id == "r5":
                watch(setting(), ROWS[:10], inner)

    outer, alone = Outer(), StepNotes()
    log = watch(setting(), ROWS, outer)
    assert differences(log, watch(setting(), ROWS, alone)) == []
    assert outer.calls == alone.calls
    assert inner.calls[0] == (0.0, "arrived", "r0", 0)
