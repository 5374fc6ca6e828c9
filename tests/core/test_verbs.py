"""Preemption, victims and host memory, function by function, and what a rule must not do."""

from __future__ import annotations

from typing import Any

import pytest

from cbsim.core import layout, loop
from cbsim.core.driver import RuleFault
from cbsim.core.layout import LAST_ADMITTED, LEAST_PROGRESS, LOWEST_PRIORITY, MOST_BLOCKS, PRIORITY, SWAP
from cbsim.core.pool import allocate
from cbsim.core.stepping import Stepper
from cbsim.core.verbs import schedule
from cbsim.schedulers.paged import choose_among, choose_victim
from cbsim.schedulers.preemptive import PreemptiveScheduler
from cbsim.workload.request import Request
from tests.core.replica import new_replica, new_request, running


def chosen(replica: Stepper, *candidates: Request) -> Request:
    """Whom the victim rule takes among these, in order of admission."""
    replica.records.candidates[: len(candidates)] = [request.index for request in candidates]
    return replica.world.requests[choose_among(replica.records, len(candidates))]


@pytest.mark.parametrize("victim", [LOWEST_PRIORITY, LEAST_PROGRESS])
def test_ties_go_to_the_last_to_arrive(victim: int) -> None:
    replica = new_replica(victim=victim)
    older, newer = new_request(1), new_request(2)
    running(replica, older, newer)
    assert chosen(replica, older, newer) is chosen(replica, newer, older) is newer


def test_most_blocks_spares_the_first_admitted() -> None:
    replica = new_replica(victim=MOST_BLOCKS)
    first, older, newer = (new_request(i) for i in range(3))
    running(replica, first, older, newer)
    assert chosen(replica, first, newer, older) is newer
    first.num_blocks, older.num_blocks = 9, 2
    assert chosen(replica, first, older) is older
    assert chosen(replica, first) is first


def test_among_the_aged_the_first_to_arrive_is_safe() -> None:
    replica = new_replica(policy=PRIORITY, aging_s=1.0, victim=LAST_ADMITTED)
    first, second = new_request(0, priority=9), new_request(1, priority=0)
    running(replica, first, second)
    # Admitted the other way round.
    replica.records.running[:2] = [1, 0]
    for request in (first, second):
        request.waited_s = 2.0
    assert choose_victim(replica.records, 5.0) == second.index


def test_time_of_a_call_without_a_step_goes_to_the_next_step() -> None:
    """Moving 2 blocks of 1 byte at 4 bytes/s takes 0.125 + 2 / 4 s each way."""
    replica = new_replica(
        4,
        rules=PreemptiveScheduler.rules(),
        preemption=SWAP,
        num_swap_blocks=10,
        block_bytes=1,
        swap_bytes_per_s=4.0,
        swap_latency_s=0.125,
    )
    lone = new_request(0, 8, 8)
    running(replica, lone)
    lone.num_computed_tokens, lone.num_generated_tokens = 8, 1
    replica.own.num_kv_tokens = 8
    allocate(replica.records, lone, 2)
    replica.own.num_free = 0
    plan = replica.world.bound(loop.plan)
    step = replica.records.under_way[0]
    plan(replica.records, step, 0, 1.0)
    assert (step.num_preempted, step.num_slices, lone.num_swapped_blocks) == (1, 0, 2)
    assert replica.own.num_swapped_blocks == 2
    replica.own.num_free = 4
    replica.call(2.0)
    assert replica.decisions(replica.under_way[0]) == [("resumed", lone, 0)]
    assert replica.under_way[0].transfer_s == 2 * (0.125 + 2 / 4)
    assert replica.own.num_swapped_blocks == 0


def test_the_first_fault_is_told_and_no_step_begins() -> None:
    def decide(self: Any, step: Any) -> None:
        request = self.requests[self.running[0]]
        schedule(self, step, request, 9)
        schedule(self, step, request, 0)

    replica = new_replica(rules={"decide": decide}, max_tokens_per_step=16)
    running(replica, new_request(0, 8))
    with pytest.raises(RuleFault) as caught:
        replica.call(3.0)
    fault = caught.value
    assert (fault.code, fault.replica, fault.request) == (layout.SCHEDULED_TOO_MUCH, 0, 0)
    assert (fault.num_asked, fault.num_allowed, fault.budget, fault.now) == (9, 8, 16, 3.0)
    assert replica.under_way == []
