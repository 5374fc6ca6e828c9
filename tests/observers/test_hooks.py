"""When each hook is called, worked by hand, and what an observer's needs decide."""

from __future__ import annotations

from typing import Any

import pytest

from cbsim.base.binding import can_compile
from cbsim.observers import Needs, Observer, StepView
from cbsim.observers.audience import Audience
from cbsim.studies import simulation
from cbsim.studies.simulation import Speed
from cbsim.workload.request import Request, RequestState
from tests.observers.watched import Notes, Row, StateNotes, StepNotes, row, setting, watch

KINDS = ("static", "continuous", "chunked_prefill", "preemptive", "vllm")


def test_a_request_and_its_steps() -> None:
    """a: prompt in step 0, two decodes. b comes during step 1, is computed in step 2, done with it."""
    notes = StepNotes()
    watch(setting(), [row("a", 0.5, 4, 3), row("b", 2.0, 4, 1)], notes)
    assert notes.calls == [
        (0.5, "arrived", "a", 0),
        (0.5, "admitted", "a", 0),
        (0.5, "before", 0, 0),
        (1.5, "first token", "a", 0),
        (1.5, "after", 0, 0),
        (1.5, "before", 1, 0),
        (2.0, "arrived", "b", 0),
        (2.5, "after", 1, 0),
        (2.5, "admitted", "b", 0),
        (2.5, "before", 2, 0),
        (3.5, "first token", "b", 0),
        (3.5, "finished", "a", 0),
        (3.5, "finished", "b", 0),
        (3.5, "after", 2, 0),
    ]
    assert notes.ended_at_s == [3.5]
    assert notes.run.name == "watched"
    assert len(notes.run.schedulers) == 1


def test_with_asynchronous_scheduling_a_step_is_told_when_it_is_decided() -> None:
    """Step 1 is decided right behind step 0 and starts at its end."""
    seen: list[tuple[int, float, float, float]] = []

    class Starts(StepNotes):
        def before_step(self, now: float, step: StepView, replica: int) -> None:
            super().before_step(now, step, replica)
            seen.append((step.number, now, step.start_s, step.end_s))

    notes = Starts()
    scheduler = {"type": "vllm", "async_scheduling": True}
    watch(setting(scheduler=scheduler), [row("a", 0.5, 4, 3)], notes)
    assert notes.calls == [
        (0.5, "arrived", "a", 0),
        (0.5, "admitted", "a", 0),
        (0.5, "before", 0, 0),
        (0.5, "before", 1, 0),
        (1.5, "first token", "a", 0),
        (1.5, "after", 0, 0),
        (1.5, "before", 2, 0),
        (2.5, "after", 1, 0),
        (3.5, "finished", "a", 0),
        (3.5, "after", 2, 0),
    ]
    assert seen == [(0, 0.5, 0.5, 1.5), (1, 0.5, 1.5, 2.5), (2, 1.5, 2.5, 3.5)]


def test_a_preemption_and_what_follows() -> None:
    """Four blocks of four tokens: a and b take two each; at its ninth token a needs a third, so b goes."""
    notes = StepNotes()
    watch(setting(num_blocks=4), [row("a", 0.0, 7, 4), row("b", 0.0, 7, 2)], notes)
    hooks = [call[:3] for call in notes.calls if call[1] not in ("before", "after")]
    assert hooks == [
        (0.0, "arrived", "a"),
        (0.0, "arrived", "b"),
        (0.0, "admitted", "a"),
        (0.0, "admitted", "b"),
        (1.0, "first token", "a"),
        (1.0, "first token", "b"),
        (2.0, "finished", "b"),
        (4.0, "finished", "a"),
    ]
    notes = StepNotes()
    watch(setting(num_blocks=4), [row("a", 0.0, 7, 4), row("b", 0.0, 7, 4)], notes)
    hooks = [call[:3] for call in notes.calls if call[1] not in ("before", "after")]
    assert hooks[4:] == [
        (1.0, "first token", "a"),
        (1.0, "first token", "b"),
        (2.0, "preempted", "b"),
        (4.0, "finished", "a"),
        (4.0, "admitted", "b"),
        (6.0, "finished", "b"),
    ]


def test_a_request_that_can_never_be_served_arrives_rejected() -> None:
    states: list[RequestState] = []

    class States(Notes):
        def on_request_arrived(self, now: float, request: Request, replica: int) -> None:
            super().on_request_arrived(now, request, replica)
            states.append(request.state)

    notes = States()
    watch(setting(num_blocks=4), [row("a", 0.0, 400, 1), row("b", 1.0, 4, 1)], notes)
    assert [call[1:3] for call in notes.calls] == [
        ("arrived", "a"),
        ("arrived", "b"),
        ("admitted", "b"),
        ("first token", "b"),
        ("finished", "b"),
    ]
    assert states == [RequestState.REJECTED, RequestState.WAITING]


def test_what_a_step_shows() -> None:
    """Two prompts of 4 tokens; then both decode, and a, with its last token, leaves."""
    views: list[StepView] = []
    slices: list[list[tuple[str, int, int, bool, bool]]] = []
    finished_before: list[int] = []

    class Views(Observer):
        def before_step(self, now: float, step: StepView, replica: int) -> None:
            finished_before.append(len(step.finished))

        def after_step(self, now: float, step: StepView, replica: int) -> None:
            views.append(step)
            slices.append([(s.request.request_id, *s[1:5]) for s in step.slices])  # type: ignore[misc]

    log = watch(setting(), [row("a", 0.0, 4, 2), row("b", 0.0, 5, 3)], Views())
    shown = [(v.num_prefill_tokens, v.num_decodes, v.num_new_tokens, v.kv_blocks_used) for v in views]
    assert shown == [(9, 0, 2, 3), (0, 2, 2, 4), (0, 1, 1, 2)]
    assert slices == [
        [("a", 4, 0, True, True), ("b", 5, 0, True, True)],
        [("a", 1, 4, False, True), ("b", 1, 5, False, True)],
        [("b", 1, 6, False, True)],
    ]
    assert [[r.request_id for r in v.finished] for v in views] == [[], ["a"], ["b"]]
    assert finished_before == [0, 0, 0]
    assert [v.end_s for v in views] == [1.0, 2.0, 3.0]
    assert [v.kv_blocks_total for v in views] == [100] * 3
    assert [v.num_running for v in views] == log.steps["num_running"].tolist()


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_token_counts_before_it_is_told(kind: str, is_async: bool) -> None:
    """Hooks at a step's end see the request as it is then."""

    class Counts(Observer):
        def on_first_token(self, now: float, request: Request, replica: int) -> None:
            told.append(request.num_generated_tokens)
            assert request.first_token_at_s == now

        def on_finished(self, now: float, request: Request, replica: int) -> None:
            told.append(request.num_generated_tokens)
            assert request.state == RequestState.FINISHED

    told: list[int] = []
    scheduler = {"type": kind, "async_scheduling": is_async}
    watch(setting(scheduler=scheduler), [row("a", 0.0, 4, 3), row("b", 9.0, 4, 3)], Counts())
    assert told == [1, 3, 1, 3]


def crowd(num_requests: int = 30) -> list[Row]:
    """More than four blocks' worth at a time, some of them at one instant."""
    return [row(f"r{i}", float(i // 3), 5 + i % 7, 1 + i % 9) for i in range(num_requests)]


@pytest.mark.parametrize("notes", [Notes(), StepNotes(), StateNotes()])
def test_the_hooks_of_all_replicas_come_in_order_of_time(notes: Notes) -> None:
    watch(setting(num_blocks=8, replicas={"count": 3}), crowd(), notes)
    times = [call[0] for call in notes.calls]
    assert times == sorted(times)
    assert {call[3] for call in notes.calls} == {0, 1, 2}


def test_who_hears_of_requests_alone_hears_the_same_in_the_same_order() -> None:
    closely, loosely = StepNotes(), Notes()
    for notes in (closely, loosely):
        watch(setting(num_blocks=8, replicas={"count": 3}), crowd(), notes)
    assert loosely.calls == [call for call in closely.calls if call[1] not in ("before", "after")]
    assert len(loosely.calls) > 90


class Deaf(Observer):
    pass


class Early(Observer):
    def on_admitted(self, now: float, request: Request, replica: int) -> None:
        """Hears of requests."""


class Stated(Early):
    needs = Needs.STATE


def test_needs_follow_from_the_hooks() -> None:
    assert Deaf().needs is Early().needs is Notes().needs is Needs.REQUESTS
    assert StepNotes().needs is Needs.STEPS
    assert Audience([Early(), Stated(), Deaf()]).needs is Needs.STATE
    assert Audience([]).needs is Needs.REQUESTS


@pytest.mark.parametrize("observer", [Deaf(), Early(), StepNotes(), Stated()])
@pytest.mark.parametrize("engine", ["compiled", "interpreted", "auto"])
def test_a_watched_run_is_compiled_where_any_other_would_be(
    engine: str, observer: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the observer's needs. Of the two steps here nobody would compile the core unasked."""
    asked: list[bool] = []

    def refused(world: Any, bound: Any) -> Speed:
        asked.append(True)
        return Speed(False)

    monkeypatch.setattr(simulation, "compiled", refused)
    for observers in ([observer], []):
        asked.clear()
        log = watch(setting(engine=engine), [row("a", 0.0, 4, 2)], *observers)
        assert log.steps["start_s"].tolist() == [0.0, 1.0]
        assert bool(asked) == (engine == "compiled" and can_compile())


def test_a_step_hook_is_not_called_for_who_says_that_it_needs_less() -> None:
    class Modest(StepNotes):
        needs = Needs.REQUESTS

    modest, keen = Modest(), StateNotes()
    watch(setting(), [row("a", 0.0, 4, 2)], modest, keen)
    assert not [call for call in modest.calls if call[1] in ("before", "after")]
    assert [call for call in keen.calls if call[1] in ("before", "after")]
