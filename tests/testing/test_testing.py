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

from cbsim.base.binding import can_compile
from cbsim.core.layout import FITS, NOBODY, WAITING
from cbsim.core.pool import allocate, blocks_for
from cbsim.core.verbs import left, preempt, schedule, start_running
from cbsim.core.waiting_queue import head_of_queue, push
from cbsim.schedulers import Means, Scheduler
from cbsim.schedulers.chunked_prefill import ChunkedPrefillScheduler
from cbsim.schedulers.chunked_prefill import decide as decide_chunked
from cbsim.schedulers.preemptive import PreemptiveScheduler
from cbsim.schedulers.reserving import num_reserved, rejects
from cbsim.schedulers.scheduler import Numbers
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

GENERATOR = np.random.default_rng(1)


class ExceedsTheBudget(ChunkedPrefillScheduler):
    def decide(self: Any, step: Any) -> None:
        step.budget += 1
        decide_chunked(self, step)


class ExceedsTheSlots(ChunkedPrefillScheduler):
    def next_admissible(self: Any, step: Any) -> int:
        head = head_of_queue(self, step.now)
        if head == NOBODY or step.budget == 0:
            return NOBODY
        return NOBODY if num_reserved(self, self.requests[head]) > self.own.num_free else head


class LosesARequest(ChunkedPrefillScheduler):
    def push(self: Any, request: Any) -> None:
        if request.index != 2:
            push(self, request)


class RejectsSilently(ChunkedPrefillScheduler):
    def rejects(self: Any, request: Any) -> int:
        return 9 if request.index == 1 else rejects(self, request)

    @classmethod
    def rejection(cls, request: Any, numbers: Numbers, means: Means) -> str:
        return "" if request["rejection"] == 9 else super().rejection(request, numbers, means)


class RejectsEverybody(ChunkedPrefillScheduler):
    def rejects(self: Any, request: Any) -> int:
        return 9


class WaitsForNothing(ChunkedPrefillScheduler):
    """Never runs a request alone."""

    def decide(self: Any, step: Any) -> None:
        if self.own.num_running + self.own.num_waiting > 1:
            decide_chunked(self, step)


class KeepsBlocks(ChunkedPrefillScheduler):
    def left(self: Any, request: Any) -> None:
        if request.index:
            left(self, request)


class HoardsBlocks(PreemptiveScheduler):
    """A victim keeps a block."""

    def preempt(self: Any, step: Any, victim: Any) -> None:
        preempt(self, step, victim)
        if self.own.num_free and not self.own.has_identities:
            allocate(self, victim, 1)


class TakesTooFewBlocks(ChunkedPrefillScheduler):
    def num_reserved(self: Any, request: Any) -> int:
        return blocks_for(self, request.num_prompt_tokens)


class SkipsATokenOfTheKV(PreemptiveScheduler):
    """A resumed request is said to have a token that nobody computed."""

    def start_running(self: Any, step: Any, request: Any, num_computed: int) -> None:
        start_running(self, step, request, num_computed)
        if request.num_preemptions:
            request.num_computed_tokens += 1


class SchedulesTwice(ChunkedPrefillScheduler):
    def schedule(self: Any, step: Any, request: Any, num_tokens: int) -> None:
        if num_tokens > 1:
            schedule(self, step, request, 1)
            num_tokens -= 1
        schedule(self, step, request, num_tokens)


class EmitsWhenPlanned(ChunkedPrefillScheduler):
    def schedule(self: Any, step: Any, request: Any, num_tokens: int) -> None:
        schedule(self, step, request, num_tokens)
        if self.slices[step.place][step.num_slices - 1].emits and request.num_in_flight_tokens == 1:
            request.num_generated_tokens += 1
            request.num_in_flight_tokens -= 1


class MiscountsRecomputation(PreemptiveScheduler):
    def preempt(self: Any, step: Any, victim: Any) -> None:
        preempt(self, step, victim)
        victim.num_lost_tokens = 0


class ServesTheNewest(ChunkedPrefillScheduler):
    """Last come, first served: the first may wait for ever."""

    def rank_of(self: Any, request: Any) -> float:
        return float(-request.index)


class DrawsFromNowhere(ChunkedPrefillScheduler):
    """Random numbers that no seed controls."""

    def decide(self: Any, step: Any) -> None:
        step.budget -= int(GENERATOR.integers(min(2, step.budget)))
        decide_chunked(self, step)


class LooksAhead(ChunkedPrefillScheduler):
    """Serves less while further requests are still to come, which nobody can know."""

    def decide(self: Any, step: Any) -> None:
        if self.requests[len(self.requests) - 1].state == WAITING and step.budget > 1:
            step.budget -= 1
        decide_chunked(self, step)


class RunsInCircles(ChunkedPrefillScheduler):
    """Preempts everybody before anyone is done."""

    def decide(self: Any, step: Any) -> None:
        while self.own.num_running:
            preempt(self, step, self.requests[self.running[0]])
        decide_chunked(self, step)


class Raises(ChunkedPrefillScheduler):
    def decide(self: Any, step: Any) -> None:
        raise KeyError("no such request")


class SchedulesTooMuch(ChunkedPrefillScheduler):
    def decide(self: Any, step: Any) -> None:
        for place in range(self.own.num_running):
            schedule(self, step, self.requests[self.running[place]], 9)
        decide_chunked(self, step)


class TakesBlocksThatAreNotFree(ChunkedPrefillScheduler):
    def num_reserved(self: Any, request: Any) -> int:
        return self.own.num_blocks + 1

    def next_admissible(self: Any, step: Any) -> int:
        return head_of_queue(self, step.now)

    def rejects(self: Any, request: Any) -> int:
        return FITS


class Overflows(ChunkedPrefillScheduler):
    """What numba counts in 64 bits, and Python without end."""

    def decide(self: Any, step: Any) -> None:
        large = self.own.num_blocks + 2**62
        if large * 2 < 0:
            step.budget = 1
        decide_chunked(self, step)


BROKEN: dict[type[Scheduler], set[str]] = {
    ExceedsTheBudget: {"budget_kept"},
    ExceedsTheSlots: {"slots_kept", "raises_nothing"},
    LosesARequest: {"each_in_one_place"},
    RejectsSilently: {"nobody_lost"},
    RejectsEverybody: {"nobody_lost"},
    WaitsForNothing: {"nobody_lost", "never_idle"},
    KeepsBlocks: {"blocks_conserved", "never_idle"},
    HoardsBlocks: {"blocks_conserved"},
    TakesTooFewBlocks: {"kv_covered"},
    SkipsATokenOfTheKV: {"tokens_in_order", "raises_nothing"},
    SchedulesTwice: {"tokens_in_order"},
    EmitsWhenPlanned: {"effects_at_step_ends", "tokens_in_order", "each_in_one_place"},
    MiscountsRecomputation: {"tokens_conserved"},
    ServesTheNewest: {"nobody_starves"},
    DrawsFromNowhere: {"deterministic"},
    LooksAhead: {"deterministic"},
    RunsInCircles: {"comes_to_an_end"},
    Raises: {"raises_nothing"},
    SchedulesTooMuch: {"raises_nothing"},
    TakesBlocksThatAreNotFree: {"raises_nothing"},
}


@pytest.mark.skipif(not can_compile(), reason="numba is not installed")
def test_a_scheduler_that_decides_otherwise_when_compiled_is_caught() -> None:
    check_scheduler(Overflows, num_cases=5, compiled=False)
    with pytest.raises(ConformanceError, match="breaks 'compiled_agrees'") as caught:
        check_scheduler(Overflows, num_cases=5)
    assert "compiled=True" in str(caught.value)


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (
            SchedulesTooMuch,
            r"SchedulesTooMuch schedules 9 tokens of request r\d+, which has \d+ left, with \d+ left of the "
            "step's budget",
        ),
        (
            TakesBlocksThatAreNotFree,
            r"TakesBlocksThatAreNotFree takes \d+ KV blocks for request r0, \d+ are free",
        ),
        (
            ExceedsTheSlots,
            r"ExceedsTheSlots admits request r\d+, though \d+ run, max_num_seqs",
        ),
        (Raises, r"KeyError: 'no such request' \(test_testing.py:\d+\)"),
    ],
)
def test_what_a_rule_must_not_do_is_told_with_its_figures(broken: type[Scheduler], told: str) -> None:
    with pytest.raises(ConformanceError, match=told):
        check_scheduler(broken)


ONLY_IN_THE_END = (RejectsEverybody, ServesTheNewest)
"""Those whom no drawn case gives away."""


@pytest.mark.parametrize("broken", BROKEN, ids=lambda scheduler: scheduler.__name__)
def test_a_broken_scheduler_is_caught(broken: type[Scheduler]) -> None:
    with pytest.raises(ConformanceError) as caught:
        check_scheduler(broken, num_cases=10 if broken in ONLY_IN_THE_END else 100)
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
        check_scheduler("vllm", {"policy": "priority"}, num_cases=1, compiled=False)
    told = str(caught.value)
    found = re.search(rf"(\d+) of {NUM_RIVALS} rivals that came later were done before {STARVED} ", told)
    assert found is not None
    assert NUM_RIVALS // 2 < int(found.group(1)) <= NUM_RIVALS
    assert "may_starve=True" in told
    assert f"check_case(VllmScheduler, error.case), which has {NUM_RIVALS + 3} requests" in told
    assert len(told) < 1500
    assert len(list(nobody_starves(check_case(VllmScheduler, caught.value.case)))) == 1
    check_scheduler("vllm", {"policy": "priority"}, num_cases=1, may_starve=True, compiled=False)


def test_settings_given_are_kept_and_others_drawn() -> None:
    generator = np.random.default_rng(0)
    drawn = [draw_case(generator, VllmScheduler.Config, {"max_num_seqs": 3}) for _ in range(40)]
    assert {case.settings["max_num_seqs"] for case in drawn} == {3}
    assert len({case.settings["max_tokens_per_step"] for case in drawn}) > 2
    assert {case.settings["async_scheduling"] for case in drawn} == {True, False}


def test_a_whole_configuration_is_taken_as_it_is() -> None:
    config = VllmScheduler.Config(type="vllm", max_num_seqs=2, async_scheduling=False)
    check_scheduler("vllm", config, num_cases=5, compiled=False)


def test_cases_are_drawn_from_the_seed_alone() -> None:
    one, two, other = (draw_case(np.random.default_rng(seed), VllmScheduler.Config, {}) for seed in (1, 1, 2))
    assert one == two != other


def test_drawn_cases_reach_the_corners() -> None:
    """Ties, preemptions, rejections, prefix hits, several replicas and closed loops all occur."""
    generator = np.random.default_rng(0)
    seen = [
        observe(PreemptiveScheduler, draw_case(generator, PreemptiveScheduler.Config, {})) for _ in range(60)
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
    log = run_case(VllmScheduler, case)
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
        "from cbsim.testing import check_scheduler; check_scheduler('vllm', num_cases=3, compiled=False)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
