"""Watched, the core gives the same results; what observers are told and see is the same at both speeds."""

from __future__ import annotations

import gc
import os
from dataclasses import replace
from typing import Any

import pytest

from cbsim.base.binding import can_compile
from cbsim.core import layout
from cbsim.observers import ObservedRun, Observer, StepView
from cbsim.observers.audience import HOOKS, Audience
from cbsim.schedulers import SCHEDULERS
from cbsim.studies.setup import Setup
from cbsim.studies.simulation import Told
from cbsim.testing import Case
from cbsim.workload.request import Request
from tests.core.drawn import Setting, draw, request
from tests.core.runs import raw_differences, run, unread

NUM_CASES = int(os.environ.get("CBSIM_NUM_WATCHED_CASES", "40"))
"""For each scheduler."""
EACH_KIND = [
    pytest.param(kind, marks=pytest.mark.xdist_group(f"core-{kind}")) for kind in SCHEDULERS.builtin_names()
]
ENGINES = ("compiled", "interpreted") if can_compile() else ("interpreted",)
ROOM = ("slot", "first_link", "end_link")
"""Places in the core's own tables: nobody's concern."""
FIELDS = (*(layout.REQUEST.names or ()), "request_id", "user", "session_id", "prompt")


class Sees(Observer):
    """Takes down each hook, all fields of its request, and all that can be seen of its replica then."""

    def on_run_start(self, run: ObservedRun) -> None:
        self.schedulers = run.schedulers
        self.told: list[Any] = []
        self.requests: dict[str, Request] = {}

    def on_run_end(self, now: float) -> None:
        self.told += [self._state(number) for number in range(len(self.schedulers))]

    def note(self, hook: str, now: float, request: Request, replica: int) -> None:
        assert self.requests.setdefault(request.request_id, request) is request
        fields = tuple(_told(getattr(request, name)) for name in FIELDS if name not in ROOM)
        self.told.append((hook, now, replica, fields, repr(request), self._state(replica)))

    def _state(self, number: int) -> Any:
        scheduler = self.schedulers[number]
        pool, running, waiting = scheduler.pool, scheduler.running, list(scheduler.waiting)
        pool.check_integrity()
        assert len(running) == scheduler.num_running
        assert len(waiting) == len(scheduler.waiting)
        assert all(self.requests[each.request_id] is each for each in (*running, *waiting))
        shown = [
            (each.request_id, each.state, each.num_blocks, each.num_computed_tokens)
            for each in (*running, *waiting)
        ]
        return (len(running), shown, pool.num_blocks, pool.num_used, pool.num_free, pool.num_cached_free)


class SeesSteps(Sees):
    """The same with steps and their slices."""

    def before_step(self, now: float, step: StepView, replica: int) -> None:
        self.note_step("before", now, step, replica)

    def after_step(self, now: float, step: StepView, replica: int) -> None:
        self.note_step("after", now, step, replica)

    def note_step(self, hook: str, now: float, step: StepView, replica: int) -> None:
        slices = [(part.request.request_id, *part[1:]) for part in step.slices]
        assert all(self.requests[part.request.request_id] is part.request for part in step.slices)
        told = [[each.request_id for each in several] for several in (step.preempted, step.finished)]
        figures = repr(step)
        self.told.append((hook, now, replica, step.number, figures, told, slices, self._state(replica)))


def _hook(name: str) -> Any:
    def hook(self: Sees, now: float, request: Request, replica: int) -> None:
        self.note(name, now, request, replica)

    return hook


for _name in HOOKS:
    if _name.startswith("on_"):
        setattr(Sees, _name, _hook(_name))


def _told(value: Any) -> Any:
    """A value of one Python type, with something that equals itself for NaN."""
    assert type(value).__module__ != "numpy"
    return None if value != value else value


def seen(setup: Setup, engine: str, observer: Sees) -> Any:
    """A watched run: how it ended."""
    return run(setup, engine, Told(Audience([observer]), "seen", "tiny"))


@pytest.mark.parametrize("kind", EACH_KIND)
def test_on_drawn_settings(kind: str) -> None:
    """All options, routers, closed loops and early ends: the results, and all that observers see.

    Of requests alone an observer is told what one is told who hears of steps too.
    """
    num_told = num_replicas = num_closed = num_async = 0
    with unread():
        for seed in range(NUM_CASES):
            # The irregular cost is a class, which is never compiled.
            setting = replace(draw(seed, kind), cost="exact")
            setup = setting.make_setup(with_batches=seed % 5 == 0)
            unwatched: Any = run(setup, "interpreted")
            told = []
            for engine in ENGINES:
                observer = SeesSteps() if seed % 3 else Sees()
                ended = seen(setup, engine, observer)
                assert raw_differences(unwatched, ended) == [], (engine, repr(setting))
                told.append(observer.told)
            assert told[0] == told[-1], repr(setting)
            if seed % 3 == 0:
                with_steps = SeesSteps()
                seen(setup, ENGINES[0], with_steps)
                of_requests = [row for row in with_steps.told if row[0] not in ("before", "after")]
                assert of_requests == told[0], repr(setting)
            times = [row[1] for row in told[0][: -setup.num_replicas]]
            assert times == sorted(times), repr(setting)
            num_told += len(told[0])
            num_replicas += setup.num_replicas > 1
            num_closed += setup.is_closed
            num_async += setup.scheduler.async_scheduling
    assert num_told > 50 * NUM_CASES
    assert min(num_replicas, num_closed, num_async) > NUM_CASES / 5


@pytest.mark.xdist_group("core-vllm")
@pytest.mark.skipif(not can_compile(), reason="needs numba")
def test_compiled_a_request_is_gone_when_it_has_ended_and_nobody_holds_it() -> None:
    rows = tuple(request(i, float(i), 4, 3) for i in range(200))
    num_alive = []

    class Counts(Observer):
        def on_finished(self, now: float, request: Request, replica: int) -> None:
            if request.index % 100 == 99:
                gc.collect()
                num_alive.append(sum(type(each) is Request for each in gc.get_objects()))

    setup = Setting("vllm", Case(rows, {}, num_blocks=100)).make_setup()
    gc.collect()
    num_before = sum(type(each) is Request for each in gc.get_objects())
    run(setup, "compiled", Told(Audience([Counts()]), "counts", "tiny"))
    assert len(num_alive) == 2
    assert max(num_alive) - num_before < 20
