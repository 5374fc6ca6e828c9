"""The fast engine equals the naive one to the last bit: tokens, decisions, steps, gaps, counts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cbsim.schedulers.chunked_prefill import ChunkedPrefillScheduler
from cbsim.schedulers.vllm import VllmScheduler
from cbsim.testing import Case
from cbsim.workload.request import Request
from tests.cluster.engine.twins import COSTS, ROUTERS, Setting, assert_engines_agree, request
from tests.strategies import SCHEDULERS, cases

MANY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SOME = settings(MANY, max_examples=30)


@st.composite
def a_setting(draw: st.DrawFn, kind: str, **fixed: Any) -> Setting:
    """Any case of a scheduler, with any router, clients' pauses, an early end, and costs of any kind."""
    _, case = draw(cases(types=[kind], **fixed))
    last_arrival_s = case.requests[-1]["arrival_s"]
    return Setting(
        kind,
        replace(case, num_replicas=draw(st.sampled_from([1, 1, 2, 3]))),
        router=draw(st.sampled_from(ROUTERS)),
        think_time_s=draw(st.sampled_from([0.0, 0.5])),
        think_time_cv=draw(st.sampled_from([0.0, 1.0])),
        stop_at_s=draw(st.sampled_from([None, None, None, 1.0, last_arrival_s + 2.0])),
        cost=draw(st.sampled_from(COSTS)),
    )


@pytest.mark.parametrize("kind", SCHEDULERS)
@MANY
@given(data=st.data())
def test_on_any_case(kind: str, data: st.DataObject) -> None:
    assert_engines_agree(data.draw(a_setting(kind)))


@pytest.mark.parametrize("version", ["0.15", "0.20", "0.33"])
@SOME
@given(data=st.data())
def test_as_each_release_of_vllm(version: str, data: st.DataObject) -> None:
    assert_engines_agree(data.draw(a_setting("vllm", version=version)))


@pytest.mark.parametrize("preemption", ["recompute", "swap", "cheaper"])
@SOME
@given(data=st.data())
def test_when_blocks_run_out(preemption: str, data: st.DataObject) -> None:
    drawn = data.draw(a_setting("preemptive", preemption=preemption, max_num_seqs=6, watermark=0.0))
    longest = max(row["num_prompt_tokens"] + row["num_output_tokens"] for row in drawn.case.requests)
    num_blocks = -(-longest // drawn.case.block_size) + 1
    together = tuple({**row, "arrival_s": 0.0} for row in drawn.case.requests)
    assert_engines_agree(replace(drawn, case=replace(drawn.case, num_blocks=num_blocks, requests=together)))


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("kind", ["preemptive", "vllm"])
def test_with_every_router(kind: str, router: str) -> None:
    """Replicas end steps at the very instants at which requests are routed by what they hold."""
    rows = tuple(
        request(i, i / 2, 3 + i % 7, 2 + i % 11, session_id=f"s{i % 4}" if i % 3 else None) for i in range(60)
    )
    case = Case(rows, {"max_num_seqs": 4, "max_tokens_per_step": 16}, num_blocks=12, num_replicas=3)
    log = assert_engines_agree(Setting(kind, case, router=router))
    assert set(log.requests["replica"]) == {0, 1, 2}


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("kind", ["continuous", "chunked_prefill", "preemptive", "vllm"])
def test_with_arrivals_on_every_step_boundary(kind: str, is_async: bool) -> None:
    """A long answer runs alone; each other request arrives at the very end of some step of its stretch."""
    rows = (request(0, 0.0, 4, 120), *(request(i, 3.0 * i, 2, 1 + i % 3) for i in range(1, 40)))
    case = Case(rows, {"async_scheduling": is_async}, num_blocks=200)
    log = assert_engines_agree(Setting(kind, case))
    starts, ends = log.steps["start_s"], log.steps["start_s"] + log.steps["duration_s"]
    assert set(log.requests["arrival_s"][1:]) <= set(starts) & set(ends)


@pytest.mark.parametrize("prefix_caching", [False, True])
@pytest.mark.parametrize("kind", ["preemptive", "vllm"])
def test_under_thrash(kind: str, prefix_caching: bool) -> None:
    """Twice as much as fits, so that preemptions cut every stretch short."""
    rows = tuple(request(i, i / 8, 5 + i % 9, 20 + i % 13) for i in range(40))
    limits = {"max_num_seqs": 8, "max_tokens_per_step": 32}
    case = Case(rows, limits, num_blocks=24, prefix_caching=prefix_caching)
    log = assert_engines_agree(Setting(kind, case))
    assert log.requests["num_preemptions"].sum() > 40


@pytest.mark.parametrize("kind", ["preemptive", "vllm"])
def test_when_a_blocked_head_gets_room_by_an_answer_under_way(kind: str) -> None:
    """The last prompt holds the answer that is being made: a block that fills is one more to share."""
    rows = (
        request(0, 0.0, 4, 40, prompt=(("s", 4),)),
        request(1, 0.0, 19, 24),
        request(2, 2.0, 29, 2, prompt=(("s", 4), ("o:r0", 25))),
    )
    limits = {"async_scheduling": False, "max_num_seqs": 8}
    log = assert_engines_agree(Setting(kind, Case(rows, limits, num_blocks=14, prefix_caching=True)))
    assert log.requests["first_scheduled_at_s"][2] < log.requests["finished_at_s"][:2].min()


def test_when_a_blocked_head_gives_way_as_time_goes_by() -> None:
    """By priority r2 comes first and lacks blocks; after 3 s r1 is aged, goes first, and fits."""
    rows = (
        request(0, 0.0, 4, 28, priority=0),
        request(1, 2.0, 11, 3, priority=2),
        request(2, 2.0, 26, 3, priority=1),
    )
    case = Case(rows, {"policy": "priority", "aging_s": 3.0}, num_blocks=8)
    log = assert_engines_agree(Setting("preemptive", case))
    assert log.requests["first_scheduled_at_s"][1] == 6.0


@pytest.mark.parametrize("stop_at_s", [0.0625, 1.0, 1.5, 7.0, 20.0])
def test_when_stopped_in_the_middle_of_a_stretch(stop_at_s: float) -> None:
    case = Case((request(0, 0.0, 4, 50), request(1, 0.5, 4, 50)), num_blocks=64)
    log = assert_engines_agree(Setting("vllm", case, stop_at_s=stop_at_s))
    assert log.end_s == stop_at_s


class NeverFastForwards(ChunkedPrefillScheduler):
    """A policy that has not promised anything."""

    can_fast_forward = False


class SkipsEverySecond(NeverFastForwards):
    """A policy that the decode group could not stand for: it decodes odd and even requests in turn."""

    def num_wanted(self, request: Request) -> int:
        wanted = super().num_wanted(request)
        is_decode = request.num_computed_tokens >= request.num_prompt_tokens
        turn = self._num_admissions + sum(other.num_generated_tokens for other in self.running)
        return 0 if is_decode and len(self.running) > 1 and (request.index + turn) % 2 else wanted


@pytest.mark.parametrize("scheduler_class", [NeverFastForwards, SkipsEverySecond])
def test_with_a_scheduler_that_rules_fast_forward_out(scheduler_class: type[ChunkedPrefillScheduler]) -> None:
    rows = tuple(request(i, i / 2, 3, 4 + i % 5) for i in range(12))
    case = Case(rows, {"max_num_seqs": 3, "max_tokens_per_step": 8})
    assert_engines_agree(Setting(scheduler_class, case, cost="irregular"))


class GrowingCap(VllmScheduler):
    """Chunks grow with the number of running requests, so that an early prompt takes late decodes' budget."""

    def chunk_cap(self) -> int:
        return 1 if self.num_running < 4 else 6


@pytest.mark.parametrize("is_async", [False, True])
def test_with_a_prompt_that_comes_before_decodes_and_leaves_them_nothing(is_async: bool) -> None:
    rows = (request(0, 0.0, 60, 3), *(request(i, 0.25 * i, 1, 12) for i in range(1, 6)))
    case = Case(rows, {"max_tokens_per_step": 8, "async_scheduling": is_async}, num_blocks=60)
    log = assert_engines_agree(Setting(GrowingCap, case))
    # Some decode went without: fewer than run.
    steps = log.steps
    assert (steps["num_decode_seqs"] + steps["num_prefill_seqs"] < steps["num_running"]).any()


@pytest.mark.parametrize("version", ["0.15", "0.20", "0.33"])
def test_nobody_is_left_behind_when_a_call_only_preempts(version: str) -> None:
    """Before 0.33 a request that gives up its own blocks ends the pass; the next call serves the rest."""
    rows = (request(0, 0.0, 8, 20, priority=1), request(1, 1.0, 8, 20, priority=0))
    limits = {"policy": "priority", "version": version, "async_scheduling": False, "reserve_full_isl": False}
    log = assert_engines_agree(Setting("vllm", Case(rows, limits, num_blocks=8)))
    assert log.requests["num_generated_tokens"].tolist() == [20, 20]
    assert log.requests["num_preemptions"].tolist() == [1, 0]


def test_a_broken_promise_is_told_instead_of_guessed() -> None:
    class Preempts(VllmScheduler):
        def serve_running(self, step: Any, cap: int) -> None:
            if self.running and self.num_hidden:
                self.preempt(step, self.running[-1])
            super().serve_running(step, cap)

    rows = (request(0, 0.0, 2, 30), request(1, 3.5, 30, 4))
    case = Case(rows, {"max_tokens_per_step": 8, "async_scheduling": False})
    with pytest.raises(RuntimeError, match="Preempts preempts although all decodes have what they need"):
        assert_engines_agree(Setting(Preempts, case))
