"""The conformance kit catches a scheduler that breaks a law, by that law, with a case that shows it again."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cbsim.cluster.engine.reference import ReferenceEngine

from cbsim.schedulers import Scheduler, StepPlan
from cbsim.schedulers.chunked_prefill import ChunkedPrefillScheduler
from cbsim.schedulers.preemptive import PreemptiveScheduler
from cbsim.schedulers.vllm import VllmScheduler
from cbsim.testing import (
    HISTORY_LAWS,
    LOG_LAWS,
    Case,
    ConformanceError,
    check_case,
    check_scheduler,
    differences,
    draw_case,
    observe,
    run_case,
    without_batches,
)
from cbsim.testing.case import NUM_RIVALS, STARVED
from cbsim.testing.laws import nobody_starves
from cbsim.workload.request import Request


class ExceedsTheBudget(ChunkedPrefillScheduler):
    def decide(self, step: StepPlan) -> None:
        step.budget += 1
        super().decide(step)


class ExceedsTheSlots(ChunkedPrefillScheduler):
    def next_admissible(self, step: StepPlan) -> Request | None:
        request = self.waiting.head(step.now)
        if request is None or not step.budget or self.num_reserved(request) > self.pool.num_free:
            return None
        return request


class LosesARequest(ChunkedPrefillScheduler):
    def add(self, request: Request) -> None:
        if request.index != 2:
            super().add(request)


class RejectsSilently(ChunkedPrefillScheduler):
    def rejection(self, request: Request) -> str | None:
        return "" if request.index == 1 else super().rejection(request)


class RejectsEverybody(ChunkedPrefillScheduler):
    def rejection(self, request: Request) -> str | None:
        return "no"


class WaitsForNothing(ChunkedPrefillScheduler):
    """Never runs a request alone."""

    def decide(self, step: StepPlan) -> None:
        if len(self.running) + len(self.waiting) > 1:
            super().decide(step)


class KeepsBlocks(ChunkedPrefillScheduler):
    def left(self, request: Request) -> None:
        if request.index:
            super().left(request)


class HoardsBlocks(PreemptiveScheduler):
    """A victim keeps a block."""

    def preempt(self, step: StepPlan, victim: Request) -> None:
        super().preempt(step, victim)
        if self.pool.num_free and not self.pool.has_identities:
            self.pool.allocate(victim, 1)


class TakesTooFewBlocks(ChunkedPrefillScheduler):
    def num_reserved(self, request: Request) -> int:
        return self.pool.blocks_for(request.num_prompt_tokens)


class SkipsATokenOfTheKV(PreemptiveScheduler):
    """A resumed request is said to have a token that nobody computed."""

    def admit(self, step: StepPlan, request: Request, *args: Any) -> None:
        super().admit(step, request, *args)
        if request.num_preemptions:
            request.num_computed_tokens += 1


class SchedulesTwice(ChunkedPrefillScheduler):
    def schedule(self, step: StepPlan, request: Request, num_tokens: int) -> None:
        if num_tokens > 1:
            super().schedule(step, request, 1)
            num_tokens -= 1
        super().schedule(step, request, num_tokens)


class EmitsWhenPlanned(ChunkedPrefillScheduler):
    def schedule(self, step: StepPlan, request: Request, num_tokens: int) -> None:
        super().schedule(step, request, num_tokens)
        if step.slices[-1].emits and request.num_in_flight_tokens == 1:
            request.num_generated_tokens += 1
            request.num_in_flight_tokens -= 1


class MiscountsRecomputation(PreemptiveScheduler):
    def preempt(self, step: StepPlan, victim: Request) -> None:
        super().preempt(step, victim)
        victim.num_lost_tokens = 0


class ServesTheNewest(ChunkedPrefillScheduler):
    """Last come, first served: the first may wait for ever."""

    def add(self, request: Request) -> None:
        others = list(self.waiting)
        for other in others:
            self.waiting.remove(other)
        for each in (request, *others):
            self.waiting.push(each)


class DrawsFromNowhere(ChunkedPrefillScheduler):
    """Random numbers that no seed controls."""

    generator = np.random.default_rng(1)

    def decide(self, step: StepPlan) -> None:
        step.budget -= int(self.generator.integers(min(2, step.budget)))
        super().decide(step)


class ClaimsToFastForward(ChunkedPrefillScheduler):
    """Leaves a decode out in every other step, and promises that it doesn't."""

    can_fast_forward = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.num_calls = 0

    def decide(self, step: StepPlan) -> None:
        self.num_calls += 1
        first = self.running[0] if self.running and self.num_calls % 2 else None
        if first is not None and len(self.running) > 1:
            self.running.remove(first)
            super().decide(step)
            self.running.insert(0, first)
        else:
            super().decide(step)


class RunsInCircles(ChunkedPrefillScheduler):
    """Preempts everybody before anyone is done."""

    def decide(self, step: StepPlan) -> None:
        for request in list(self.running):
            self.preempt(step, request)
        super().decide(step)


class Raises(ChunkedPrefillScheduler):
    def decide(self, step: StepPlan) -> None:
        raise KeyError("no such request")


BROKEN: dict[type[Scheduler], set[str]] = {
    ExceedsTheBudget: {"budget_kept"},
    ExceedsTheSlots: {"slots_kept"},
    LosesARequest: {"each_in_one_place"},
    RejectsSilently: {"nobody_lost"},
    RejectsEverybody: {"nobody_lost"},
    WaitsForNothing: {"nobody_lost", "never_idle"},
    KeepsBlocks: {"blocks_conserved", "never_idle"},
    HoardsBlocks: {"blocks_conserved"},
    TakesTooFewBlocks: {"kv_covered"},
    SkipsATokenOfTheKV: {"tokens_in_order", "raises_nothing"},
    SchedulesTwice: {"tokens_in_order"},
    EmitsWhenPlanned: {"effects_at_step_ends", "tokens_in_order"},
    MiscountsRecomputation: {"tokens_conserved"},
    ServesTheNewest: {"nobody_starves"},
    DrawsFromNowhere: {"deterministic", "fast_engine_agrees"},
    ClaimsToFastForward: {"fast_engine_agrees"},
    RunsInCircles: {"comes_to_an_end"},
    Raises: {"raises_nothing"},
}


@pytest.mark.parametrize("broken", BROKEN, ids=lambda scheduler: scheduler.__name__)
def test_a_broken_scheduler_is_caught(broken: type[Scheduler]) -> None:
    with pytest.raises(ConformanceError) as caught:
        check_scheduler(broken)
    assert caught.value.law in BROKEN[broken]
    assert f"scheduler '{broken.__name__}' breaks '{caught.value.law}'" in str(caught.value)


def test_the_case_told_shows_the_breach_again() -> None:
    with pytest.raises(ConformanceError) as caught:
        check_scheduler(ExceedsTheBudget)
    told = str(caught.value)
    code = told[told.index("check_case(") :]
    with pytest.raises(ConformanceError) as again:
        eval(code, {"check_case": check_case, "Case": Case, "ExceedsTheBudget": ExceedsTheBudget})
    assert (again.value.law, again.value.step) == (caught.value.law, caught.value.step)
    assert caught.value.step >= 0


def test_the_error_survives_a_worker_process() -> None:
    error = ConformanceError("mine", "budget_kept", Case(requests=()), 3, "9 tokens, the budget is 8")
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.law, copy.case, copy.step, copy.problems) == (error.law, error.case, 3, error.problems)


def test_a_policy_that_starves_by_intention_may() -> None:
    with pytest.raises(ConformanceError, match="nobody_starves") as caught:
        check_scheduler("vllm", {"policy": "priority"}, num_cases=1)
    told = str(caught.value)
    found = re.search(rf"(\d+) of {NUM_RIVALS} rivals that came later were done before {STARVED} ", told)
    assert found is not None
    assert NUM_RIVALS // 2 < int(found.group(1)) <= NUM_RIVALS
    assert "may_starve=True" in told
    assert f"check_case(VllmScheduler, error.case), which has {NUM_RIVALS + 3} requests" in told
    assert len(told) < 1500
    assert len(list(nobody_starves(check_case(VllmScheduler, caught.value.case)))) == 1
    check_scheduler("vllm", {"policy": "priority"}, num_cases=1, may_starve=True)


def test_settings_given_are_kept_and_others_drawn() -> None:
    generator = np.random.default_rng(0)
    drawn = [draw_case(generator, VllmScheduler.Config, {"max_num_seqs": 3}) for _ in range(40)]
    assert {case.settings["max_num_seqs"] for case in drawn} == {3}
    assert len({case.settings["max_tokens_per_step"] for case in drawn}) > 2
    assert {case.settings["async_scheduling"] for case in drawn} == {True, False}


def test_a_whole_configuration_is_taken_as_it_is() -> None:
    config = VllmScheduler.Config(type="vllm", max_num_seqs=2, async_scheduling=False)
    check_scheduler("vllm", config, num_cases=5)


def test_cases_are_drawn_from_the_seed_alone() -> None:
    one, two, other = (draw_case(np.random.default_rng(seed), VllmScheduler.Config, {}) for seed in (1, 1, 2))
    assert one == two != other


def test_drawn_cases_reach_the_corners() -> None:
    """Ties, preemptions, rejections, prefix hits, several replicas and closed loops all occur."""
    generator = np.random.default_rng(0)
    seen = [
        observe(PreemptiveScheduler, draw_case(generator, PreemptiveScheduler.Config, {})) for _ in range(100)
    ]
    logs = [each.log for each in seen]
    assert sum(bool(log.num_tokens_recomputed) for log in logs) > 5
    assert sum(bool(log.rejections) for log in logs) > 5
    assert sum(bool(log.num_prompt_tokens_hit) for log in logs) > 5
    assert sum((np.diff(log.requests["arrival_s"]) == 0).any() for log in logs) > 20
    assert {each.case.num_replicas for each in seen} == {1, 2}
    assert any(each.case.concurrency for each in seen)


def test_logs_that_differ_are_told_apart_to_the_last_bit() -> None:
    case = draw_case(np.random.default_rng(3), VllmScheduler.Config, {})
    log = run_case(VllmScheduler, case, ReferenceEngine)
    assert differences(log, without_batches(observe(VllmScheduler, case).log)) == []
    column = log.steps["duration_s"].copy()
    column[0] = np.nextafter(column[0], np.inf)
    (line,) = differences(log, replace(log, steps={**log.steps, "duration_s": column}))
    assert line.startswith(f"steps.duration_s: 1 of {len(column)} rows, first row 0")


def test_every_law_says_what_it_holds() -> None:
    assert all(law.__doc__ for law in (*HISTORY_LAWS.values(), *LOG_LAWS.values()))


def test_the_kit_needs_neither_pytest_nor_hypothesis() -> None:
    script = (
        "import sys; sys.modules['pytest'] = sys.modules['hypothesis'] = None\n"
        "from cbsim.testing import check_scheduler; check_scheduler('vllm', num_cases=3)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
