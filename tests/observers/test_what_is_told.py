"""All that observers are told, held against the record, and against a run whose replicas go on their own."""

from __future__ import annotations

from collections import Counter, defaultdict
from functools import partial
from typing import Any

import numpy as np
import pytest

from cbsim.cluster.watched_run import ToldStepper
from cbsim.observers import ObservedRun, Observer, StepView
from cbsim.observers.audience import Audience
from cbsim.observers.views import SchedulerView
from cbsim.results.run_log import EMITTED, EVENTS, KINDS, RunLog
from cbsim.studies.experiment import Experiment
from cbsim.studies.run import make_cost_model
from cbsim.studies.setup import setup_of
from cbsim.studies.simulation import Told, simulate_core, step_through, stepwise
from cbsim.testing import Case, differences
from cbsim.workload.request import Request, RequestState
from tests.observers.test_hooks import KINDS as SCHEDULERS
from tests.observers.test_hooks import crowd
from tests.observers.test_same_run import drawn
from tests.observers.watched import Row, row, setting, watch
from tests.simulation import ListedWorkload


class Everything(Observer):
    """What hooks are told, what is known of the request then, and all that a step shows."""

    def __init__(self, *, asks_before: bool, asks_after: bool) -> None:
        super().__init__()
        self.asks_before = asks_before
        self.asks_after = asks_after

    def on_run_start(self, run: ObservedRun) -> None:
        self.told: list[Any] = []

    def on_request_arrived(self, now: float, request: Request, replica: int) -> None:
        self._note("arrived", now, request, replica)

    def on_admitted(self, now: float, request: Request, replica: int) -> None:
        self._note("admitted", now, request, replica)

    def on_first_token(self, now: float, request: Request, replica: int) -> None:
        self._note("first token", now, request, replica)

    def on_preempted(self, now: float, request: Request, replica: int) -> None:
        self._note("preempted", now, request, replica)

    def on_finished(self, now: float, request: Request, replica: int) -> None:
        self._note("finished", now, request, replica)

    def before_step(self, now: float, step: StepView, replica: int) -> None:
        self._note_step("before", now, step, replica, asks=self.asks_before)

    def after_step(self, now: float, step: StepView, replica: int) -> None:
        self._note_step("after", now, step, replica, asks=self.asks_after)

    def _note(self, hook: str, now: float, request: Request, replica: int) -> None:
        known: tuple[Any, ...] = (
            request.state,
            request.num_generated_tokens,
            request.num_preemptions,
            request.num_cached_tokens,
            request.num_lost_tokens,
            request.first_scheduled_at_s,
            request.first_token_at_s,
            request.waiting_since_s,
        )
        # NaN, for an instant that has not come, equals nothing.
        known = tuple(None if value != value else value for value in known)
        self.told.append((hook, now, replica, request.request_id, known))

    def _note_step(self, hook: str, now: float, step: StepView, replica: int, *, asks: bool) -> None:
        figures = (
            step.number,
            step.scheduled_at_s,
            step.start_s,
            step.duration_s,
            step.end_s,
            step.num_prefill_tokens,
            step.num_decodes,
            step.num_new_tokens,
            step.num_running,
            step.num_waiting,
            step.kv_blocks_used,
            step.kv_blocks_total,
        )
        requests = [[request.request_id for request in them] for them in (step.preempted, step.finished)]
        slices = [(part.request.request_id, *part[1:]) for part in step.slices] if asks else []
        self.told.append((hook, now, replica, figures, requests, slices))


def mapping_of(case: Case, kind: str) -> dict[str, Any]:
    return setting(
        scheduler={"type": kind, **case.settings},
        kv_cache={
            "num_blocks": case.num_blocks,
            "block_size": case.block_size,
            "prefix_caching": case.prefix_caching,
        },
        replicas={"count": case.num_replicas},
    )


def check_told(
    mapping: dict[str, Any], rows: Any, everything: Everything, concurrency: int | None = None
) -> RunLog:
    """What is told of a run is what its record says, and what is told where replicas go on their own."""
    experiment = Experiment.from_mapping({**mapping, "output": {"batches": True}})
    workload = partial(ListedWorkload, rows, concurrency=concurrency)

    setup = setup_of(experiment, workload(), make_cost_model(experiment))
    log, *_ = simulate_core(setup, told=Told(Audience([everything]), "told", "tiny"))
    told = everything.told
    untold, *_ = simulate_core(setup_of(experiment, workload(), setup.cost), "interpreted")
    assert differences(log, untold) == []

    setup = setup_of(experiment, workload(), setup.cost)
    audience = Audience([everything])
    world = stepwise(setup, make_replica=partial(ToldStepper, audience=audience))
    views = [SchedulerView(replica, "any") for replica in world.replicas]
    audience.started(ObservedRun("told", "tiny", views))
    step_through(world, setup)
    for replica in range(setup.num_replicas):
        own = [[call for call in calls if call[2] == replica] for calls in (told, everything.told)]
        assert own[0] == own[1]
    check_requests(told, log)
    check_steps(told, log, everything)
    return log


def check_requests(told: list[Any], log: RunLog) -> None:
    """Each hook at its event's instant, with what has come of the request by then."""
    names = log.requests["request_id"].tolist()
    row_of = {name: place for place, name in enumerate(names)}
    waiting_since_s = dict(zip(names, log.requests["arrival_s"].tolist(), strict=True))
    num_tokens: Counter[str] = Counter()
    num_preemptions: Counter[str] = Counter()
    expected: list[Any] = []
    order = zip(*(log.events[name].tolist() for name in ("time_s", "event", "request")), strict=True)
    for time_s, code, place in order:
        event, name = EVENTS[code], names[place]
        num_tokens[name] += event == "emitted"
        if event == "preempted":
            num_preemptions[name] += 1
            waiting_since_s[name] = time_s
        hook = {"resumed": "admitted", "emitted": "first token" if num_tokens[name] == 1 else None}
        hook = hook.get(event, event)
        if hook is not None and event != "rejected":
            known = (num_tokens[name], num_preemptions[name], waiting_since_s[name])
            expected.append((time_s, name, hook, known))
    seen = []
    for hook, now, replica, name, known in (call for call in told if call[0] not in ("before", "after")):
        state, num_generated, preemptions, num_cached, _, scheduled_at_s, first_at_s, since_s = known
        place = row_of[name]
        assert replica == log.requests["replica"][place]
        assert state in STATES[hook]
        assert (state == RequestState.REJECTED) == (place in log.rejections)
        if place in log.rejections:  # waits for nothing
            since_s = log.requests["arrival_s"][place].item()
        if hook != "arrived":
            assert num_cached == log.requests["num_cached_tokens"][place]
            assert scheduled_at_s == log.requests["first_scheduled_at_s"][place]
        if num_generated:
            assert first_at_s == log.requests["first_token_at_s"][place]
        seen.append((now, name, hook, (num_generated, preemptions, since_s)))
    # At one instant the record has a step's tokens before those that are finished, and arrivals first.
    assert Counter(seen) == Counter(expected)
    assert [call[0] for call in seen] == [call[0] for call in expected]


STATES = {
    "arrived": (RequestState.WAITING, RequestState.REJECTED),
    "admitted": (RequestState.RUNNING,),
    "preempted": (RequestState.PREEMPTED,),
    # With a step in flight a request may be preempted before its token is there.
    "first token": (RequestState.RUNNING, RequestState.PREEMPTED, RequestState.FINISHED),
    "finished": (RequestState.FINISHED,),
}


def check_steps(told: list[Any], log: RunLog, everything: Everything) -> None:
    """Every figure of a step, whoever was preempted and finished, and each request's share of it."""
    assert log.batches is not None
    names = log.requests["request_id"]
    slices: dict[tuple[int, int], list[Any]] = defaultdict(list)
    columns = ("replica", "step", "request", "num_tokens", "num_computed_tokens", "kind")
    for replica, step, request, tokens, before, kind in zip(
        *(log.batches[name].tolist() for name in columns), strict=True
    ):
        slices[replica, step].append((names[request], tokens, before, KINDS[kind] == "prefill"))
    events: dict[tuple[int, int, str], list[str]] = defaultdict(list)
    columns = ("replica", "step", "event", "request")
    for replica, step, code, request in zip(*(log.events[name].tolist() for name in columns), strict=True):
        events[replica, step, EVENTS[code]].append(names[request])
    rows = {
        (replica, step): place
        for place, (replica, step) in enumerate(
            zip(log.steps["replica"].tolist(), log.steps["step"].tolist(), strict=True)
        )
    }
    num_ended: Counter[int] = Counter()
    for hook, now, replica, figures, (preempted, finished), parts in (
        call for call in told if call[0] in ("before", "after")
    ):
        number = figures[0]
        if hook == "after":
            assert number == num_ended[replica]
            num_ended[replica] += 1
        if (replica, number) not in rows:
            assert hook == "before"  # under way when the run was stopped
            continue
        of = {name: log.steps[name][rows[replica, number]].item() for name in log.steps}
        end_s = of["start_s"] + of["duration_s"]
        assert figures == (
            number,
            of["scheduled_at_s"],
            of["start_s"],
            of["duration_s"],
            end_s,
            of["num_prefill_tokens"],
            of["num_decode_tokens"],
            of["num_logits"],
            of["num_running"],
            of["num_waiting"],
            of["kv_blocks_used"],
            of["kv_blocks_total"],
        )
        assert now == (of["scheduled_at_s"] if hook == "before" else end_s)
        assert preempted == events[replica, number, "preempted"]
        assert finished == (events[replica, number, "finished"] if hook == "after" else [])
        if parts or (everything.asks_before if hook == "before" else everything.asks_after):
            assert [part[:4] for part in parts] == slices[replica, number]
            emitting = [name for name, *_, emits, _ in parts if emits]
            assert emitting == events[replica, number, "emitted"]
    assert sum(num_ended.values()) == len(rows)


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_every_call_is_right_in_small_and_tight_cases(kind: str) -> None:
    for seed in range(15):
        case = drawn(kind, seed, 1 + seed % 2)
        everything = Everything(asks_before=seed % 3 != 0, asks_after=seed % 3 != 1)
        check_told(mapping_of(case, kind), case.requests, everything, None if seed % 4 else 3)


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("kind", SCHEDULERS)
def test_and_where_most_steps_are_decodes_alone(kind: str, is_async: bool) -> None:
    rows = [row(f"r{i}", 3.0 * i, 5 + i % 7, 20 + 7 * (i % 5)) for i in range(25)]
    mapping = setting(scheduler={"type": kind, "async_scheduling": is_async}, num_blocks=90)
    if kind == "static":
        mapping["scheduler"]["max_model_len"] = 64
    log = check_told(mapping, rows, Everything(asks_before=True, asks_after=True))
    assert len(log.steps["step"]) > 100


BURSTS: list[Row] = [
    row("a", 0.0, 9, 6),
    row("b", 0.0, 14, 12),
    row("c", 1.5, 5, 1),
    row("d", 2.0, 30, 9),
    row("e", 2.0, 3, 25),
    row("f", 11.0, 8, 8),
    row("g", 60.0, 6, 4),
]
"""Long prompts, an answer of one token, and a pause."""


@pytest.mark.parametrize("asks_before", [True, False])
@pytest.mark.parametrize("num_blocks", [14, 100])
@pytest.mark.parametrize(
    "scheduler",
    [
        {"type": "static", "max_num_seqs": 3},
        {"type": "continuous"},
        {"type": "continuous", "prefill_first": False, "async_scheduling": True},
        {"type": "chunked_prefill", "max_tokens_per_step": 16, "chunk_size": 8},
        {"type": "preemptive", "max_tokens_per_step": 16, "chunk_size": 8},
        {"type": "preemptive", "async_scheduling": True},
        {"type": "vllm", "async_scheduling": False, "max_tokens_per_step": 16},
        {"type": "vllm", "async_scheduling": True},
    ],
    ids=lambda scheduler: "-".join(map(str, scheduler.values())),
)
def test_and_in_each_mode_between_bursts(
    scheduler: dict[str, Any], num_blocks: int, asks_before: bool
) -> None:
    """Step times whose sums are rounded."""
    mapping = setting(num_blocks=num_blocks, scheduler=scheduler)
    mapping["cost_model"] = {"type": "constant", "step_s": 0.7}
    log = check_told(mapping, BURSTS, Everything(asks_before=asks_before, asks_after=not asks_before))
    assert len(log.steps["step"]) > 20


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_and_in_a_run_that_is_stopped(kind: str) -> None:
    mapping = setting(kind, num_blocks=12, stop_at_s=8.5, replicas={"count": 2})
    if kind == "static":
        mapping["scheduler"]["max_model_len"] = 24
    log = check_told(mapping, crowd(60), Everything(asks_before=True, asks_after=True))
    assert (log.requests["state"] == RequestState.UNFINISHED).any()
    assert (log.events["event"] == EMITTED).any()
    assert not np.isnan(log.steps["duration_s"]).any()


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_those_who_hear_of_requests_alone_hear_the_same(kind: str) -> None:
    class RequestsAlone(Everything):
        before_step = Observer.before_step
        after_step = Observer.after_step

    told = []
    for observer_class in (RequestsAlone, Everything):
        mapping = setting(kind, num_blocks=12)
        observer = observer_class(asks_before=False, asks_after=False)
        if kind == "static":
            mapping["scheduler"]["max_model_len"] = 24
        watch(mapping, crowd(60), observer)
        told.append([call for call in observer.told if call[0] not in ("before", "after")])
    assert told[0] == told[1]
    assert len(told[0]) > 200


def test_slices_can_not_be_asked_for_later() -> None:
    """Their room is another step's by then; what was asked for stays."""
    views: list[StepView] = []
    problem = "the slices of a step can be asked for in before_step and after_step, not later"

    class Keeps(Observer):
        def before_step(self, now: float, step: StepView, replica: int) -> None:
            views.append(step)
            if step.number == 1:
                step.slices

        def on_request_arrived(self, now: float, request: Request, replica: int) -> None:
            if views:
                with pytest.raises(RuntimeError, match=problem):
                    views[-1].slices

    watch(setting(), [row("a", 0.0, 4, 5), row("b", 2.5, 4, 5)], Keeps())
    assert [part.num_computed_tokens for part in views[1].slices] == [4]
    for number in (0, 2, 3):
        with pytest.raises(RuntimeError, match=problem):
            views[number].slices
