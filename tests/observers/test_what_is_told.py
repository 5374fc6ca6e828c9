"""Both engines tell observers the same, whatever the fast one keeps out of the scheduler's sight."""

from __future__ import annotations

from typing import Any

import pytest

from cbsim.cluster.engine.fast import FastEngine
from cbsim.observers import ObservedRun, Observer, StepView
from cbsim.observers.audience import Audience
from cbsim.studies.experiment import Experiment
from cbsim.studies.run import choose_engine
from cbsim.testing import Case
from cbsim.workload.request import Request
from tests.observers.test_hooks import KINDS, crowd
from tests.observers.test_same_run import drawn
from tests.observers.watched import row, setting, watch


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
        known = (
            request.state,
            request.num_generated_tokens,
            request.num_preemptions,
            request.num_cached_tokens,
            request.num_lost_tokens,
            request.first_scheduled_at_s,
            request.first_token_at_s,
            request.waiting_since_s,
        )
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


@pytest.mark.parametrize("kind", KINDS)
def test_every_call_is_the_same_in_small_and_tight_cases(kind: str) -> None:
    for seed in range(15):
        case = drawn(kind, seed, 1 + seed % 2)
        mapping = mapping_of(case, kind)
        told = []
        for engine in ("reference", "fast"):
            everything = Everything(asks_before=seed % 3 != 0, asks_after=seed % 3 != 1)
            watch(
                {**mapping, "engine": engine}, case.requests, everything, concurrency=None if seed % 4 else 3
            )
            told.append(everything.told)
        assert told[0] == told[1], f"{seed}: {case!r}"


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_and_where_most_steps_are_decodes_alone(kind: str, is_async: bool) -> None:
    rows = [row(f"r{i}", 3.0 * i, 5 + i % 7, 20 + 7 * (i % 5)) for i in range(25)]
    mapping = setting(scheduler={"type": kind, "async_scheduling": is_async}, num_blocks=90)
    if kind == "static":
        mapping["scheduler"]["max_model_len"] = 64
    told = []
    for engine in ("reference", "fast"):
        everything = Everything(asks_before=True, asks_after=True)
        watch({**mapping, "engine": engine}, rows, everything)
        told.append(everything.told)
    assert told[0] == told[1]
    assert sum(call[0] == "after" for call in told[0]) > 100


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
    """Long prompts, an answer of one token, and a pause; step times whose sums are rounded."""
    rows = [
        row("a", 0.0, 9, 6),
        row("b", 0.0, 14, 12),
        row("c", 1.5, 5, 1),
        row("d", 2.0, 30, 9),
        row("e", 2.0, 3, 25),
        row("f", 11.0, 8, 8),
        row("g", 60.0, 6, 4),
    ]
    mapping = setting(num_blocks=num_blocks, scheduler=scheduler)
    told = []
    for engine in ("reference", "fast"):
        everything = Everything(asks_before=asks_before, asks_after=not asks_before)
        cost_model = {"type": "constant", "step_s": 0.7}
        watch({**mapping, "engine": engine, "cost_model": cost_model}, rows, everything)
        told.append(everything.told)
    assert told[0] == told[1]
    assert sum(call[0] == "after" for call in told[0]) > 20


@pytest.mark.parametrize("kind", KINDS)
def test_those_who_hear_of_requests_alone_hear_the_same_while_it_runs_ahead(kind: str) -> None:
    class RequestsAlone(Everything):
        before_step = Observer.before_step
        after_step = Observer.after_step

    told = []
    for engine in ("reference", "fast"):
        mapping = setting(kind, num_blocks=12, engine=engine)
        requests = RequestsAlone(asks_before=False, asks_after=False)
        assert choose_engine(Experiment.from_mapping(mapping), Audience([requests])) is FastEngine or (
            engine == "reference"
        )
        if kind == "static":
            mapping["scheduler"]["max_model_len"] = 24
        watch(mapping, crowd(60), requests)
        told.append(requests.told)
    assert told[0] == told[1]


@pytest.mark.parametrize("engine", ["reference", "fast"])
def test_slices_can_not_be_asked_for_later(engine: str) -> None:
    """The fast engine can't tell any more, so it says so; what was asked for stays."""
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

    watch(setting(engine=engine), [row("a", 0.0, 4, 5), row("b", 2.5, 4, 5)], Keeps())
    assert [part.num_computed_tokens for part in views[1].slices] == [4]
    for number in (0, 2, 3):
        with pytest.raises(RuntimeError, match=problem):
            views[number].slices
