"""Rung 4: KV blocks on demand, and preemption when they run out."""

from __future__ import annotations

import math
from collections.abc import Callable
from math import inf
from typing import Any, Literal

from numpy.typing import NDArray
from pydantic import Field, ValidationInfo, field_validator

from cbsim.base.units import GIB, GIGA
from cbsim.config.section import ComponentConfig
from cbsim.core.layout import NOBODY, WAITING
from cbsim.core.pool import allocate, blocks_for, num_freed_by, num_known_tokens
from cbsim.core.verbs import admit, is_prefilling, move_in, preempt, schedule
from cbsim.core.waiting_queue import head_of_queue, is_aged, is_less_urgent
from cbsim.schedulers.base import Resources, StepPlan
from cbsim.schedulers.kvcache import PrefixHit
from cbsim.schedulers.lengths import length_z
from cbsim.schedulers.orders import OrderConfig, Policy, make_queue
from cbsim.schedulers.paged import (
    PagedConfig,
    PagedRung,
    PagedScheduler,
    choose_among,
    finds_blocks,
    first_chunk,
    num_blocks_missing,
)
from cbsim.schedulers.paged import admit_waiting as paged_admit_waiting
from cbsim.schedulers.paged import try_admit as paged_try_admit
from cbsim.schedulers.queues import WaitingQueue
from cbsim.schedulers.rung import Means, Numbers, numbers_of
from cbsim.schedulers.swap import SwapConfig, SwapSpace
from cbsim.schedulers.victims import VICTIM_RULES
from cbsim.workload.request import Request, RequestState


class PreemptiveConfig(SwapConfig, OrderConfig, PagedConfig):
    """Rung 3 on a paged KV cache, with a choice of queue orders, victims and ways to preempt."""

    policy: Policy = "fcfs"
    """Who is admitted first: by arrival, by `priority` (smaller first), the shortest job, the earliest
    deadline (`deadline_s` after arrival), or the user who was served the fewest tokens (VTC, OSDI'24)."""
    chunk_size: int = Field(default=512, ge=0)
    """Most tokens of one request a step; 0 is no cap."""
    victim: Literal["last_admitted", "lowest_priority", "most_blocks", "least_progress"] | None = None
    """Whom to preempt; null takes the last by the policy (under `fcfs` the last admitted)."""
    preempt_on_arrival: bool = False
    """Whether a newcomer that lacks a slot or blocks may take those of less urgent running requests."""

    @field_validator("preempt_on_arrival")
    @classmethod
    def _has_lasting_order(cls, value: bool, info: ValidationInfo) -> bool:
        policy = info.data.get("policy")
        if value and policy in ("fcfs", "fair"):
            reason = (
                "no newcomer is more urgent than those before it"
                if policy == "fcfs"
                else "users' counters overtake each other, so newcomers would evict one another"
            )
            raise ValueError(f"got true, but with policy: {policy} {reason}; expected priority, sjf or edf")
        return value


class PreemptiveScheduler(PagedScheduler):
    """Decodes first, then chunks; blocks are taken as tokens need them, and victims come back later.

    Some request is always safe from preemption: the first by the policy's order, by admission or by progress,
    as the victim rule has it. So somebody always comes to an end.
    """

    Config = PreemptiveConfig
    config: PreemptiveConfig

    def __init__(self, config: PreemptiveConfig, resources: Resources) -> None:
        super().__init__(config, resources)
        self.swap = SwapSpace(config, resources.prices)
        if config.victim is not None:
            self.choose_victim = VICTIM_RULES[config.victim]

    @property
    def can_fast_forward(self) -> bool:  # type: ignore[override]
        """Not where running requests count by more than their number."""
        return not self.config.preempt_on_arrival and not self.decides_by_progress

    @property
    def decides_by_clock(self) -> bool:
        """With aging."""
        return self.config.aging_s is not None

    @property
    def decides_by_progress(self) -> bool:
        """Where the tokens served are counted."""
        return self.config.policy == "fair"

    def new_queue(self) -> WaitingQueue:
        """The waiting queue in the configured order."""
        return make_queue(self.config, self.resources.seed)

    def decide(self, step: StepPlan) -> None:
        """The running list, the queue, and the moves to and from host memory that the step waits for."""
        super().decide(step)
        if step.slices:
            step.transfer_s = self.swap.take_transfer_s()

    def running_order(self) -> list[Request]:
        """Decodes before prompts, each in order of admission."""
        return sorted(self.running, key=lambda request: request.is_prefilling)

    def ends_at_own_preemption(self) -> bool:
        """Others may still want tokens, as prompts are served last."""
        return False

    def victim(self, now: float) -> Request:
        """By the victim rule among those not aged; if all are, the last to arrive."""
        young = [request for request in self.running if not self.waiting.is_aged(request, now)]
        if not young:
            return max(self.running, key=lambda request: request.index)
        return self.choose_victim(young)

    def preempt(self, step: StepPlan, victim: Request) -> None:
        """Preempt; a victim whose KV moves to host memory keeps its progress."""
        self.unschedule(step, victim)
        num_computed = victim.num_computed_tokens
        # With its last token in flight it ends from the queue, without its KV.
        num_needed = num_computed if self.num_wanted(victim) else 0
        super().preempt(step, victim)
        num_blocks = self.pool.blocks_for(num_needed)
        if self.swap.takes(num_needed, num_blocks):
            self.swap.move_out(victim, num_blocks)
            victim.num_computed_tokens = num_computed
            victim.num_lost_tokens = 0

    def try_admit(self, step: StepPlan, request: Request, cap: int) -> bool:
        """Admit the head of the queue, with its blocks from host memory if they are there."""
        if request in step.preempted:
            return False
        if request not in self.swap:
            return super().try_admit(step, request, cap)
        num_computed, prefill_until = request.num_computed_tokens, request.prefill_until
        num_tokens = self.first_chunk(step, request, num_computed, cap)
        if num_tokens == 0 or not self.finds_blocks(step, request, num_computed + num_tokens):
            return False
        self.admit(step, request)
        request.num_computed_tokens, request.prefill_until = num_computed, prefill_until
        self.pool.allocate(request, self.pool.blocks_for(num_computed + num_tokens))
        self.swap.move_in(request)
        self.schedule(step, request, num_tokens)
        return True

    def admit_waiting(self, step: StepPlan, cap: int) -> None:
        """From the head of the queue while all lasts, with `preempt_on_arrival` beyond that."""
        super().admit_waiting(step, cap)
        while self.config.preempt_on_arrival and self.evict_for_head(step, cap):
            super().admit_waiting(step, cap)

    def evict_for_head(self, step: StepPlan, cap: int) -> bool:
        """Preempt one less urgent request for the head of the queue, if enough of them run to let it in.

        Only a request that never ran may do this, and nobody returns in the step that evicted it: so each
        eviction serves a first admission, and requests never evict one another in turns.
        """
        head = self.waiting.head(step.now)
        if head is None or head.state is not RequestState.WAITING:
            return False
        num_tokens = min(head.num_known_tokens, cap)
        if step.budget == 0 or (num_tokens > step.budget and not self.config.enable_chunked_prefill):
            return False
        rank = self.waiting.rank(head)
        less_urgent = [
            request
            for request in self.running
            if self.waiting.rank(request) > rank and not self.waiting.is_aged(request, step.now)
        ]
        if self.num_blocks_missing(head, num_tokens) > self.pool.num_held_by(less_urgent) or not less_urgent:
            return False
        self.preempt(step, self.choose_victim(less_urgent))
        return True

    def admit(self, step: StepPlan, request: Request, hit: PrefixHit | None = None) -> None:
        """Admit, and count the prompt as served at the first time."""
        if request.state is RequestState.WAITING:
            self.waiting.served(request, request.num_prompt_tokens)
        super().admit(step, request, hit)

    def commit(self, step: StepPlan) -> list[Request]:
        """Take the results, and count the tokens as served."""
        if self.decides_by_progress:
            for part in step.slices:
                self.waiting.served(part.request, part.emits)
        return super().commit(step)

    def notes(self) -> list[str]:
        """What the queue and the host memory have to say."""
        return [*super().notes(), *self.swap.notes()]


# The rules, over the core's records


def running_order(self: Any) -> int:
    """Fill `order` with decodes before prompts, each in order of admission; how many."""
    num_running, num_ordered = self.own.num_running, 0
    for prompts in range(2):
        for place in range(num_running):
            if is_prefilling(self.requests[self.running[place]]) == prompts:
                self.order[num_ordered] = self.running[place]
                num_ordered += 1
    return num_ordered


def ends_at_own_preemption(self: Any) -> bool:
    """Others may still want tokens, as prompts are served last."""
    return False


def admit_waiting(self: Any, step: Any, cap: int) -> None:
    """From the head of the queue while all lasts, with `preempt_on_arrival` beyond that."""
    goes_on = True
    while goes_on:
        paged_admit_waiting(self, step, cap)
        goes_on = self.config.preempt_on_arrival and evict_for_head(self, step, cap)


def try_admit(self: Any, step: Any, request: Any, cap: int) -> bool:
    """Admit the head of the queue, with its blocks from host memory if they are there."""
    if request.num_preemptions and request.preempted_in_call == self.own.num_calls:
        return False
    if request.num_swapped_blocks == 0:
        return paged_try_admit(self, step, request, cap)
    num_computed, prefill_until = request.num_computed_tokens, request.prefill_until
    num_tokens = first_chunk(self, step, request, num_computed, cap)
    if num_tokens == 0 or not finds_blocks(self, step, request, num_computed + num_tokens, 0, 0):
        return False
    admit(self, step, request)
    request.num_computed_tokens = num_computed
    request.prefill_until = prefill_until
    self.own.num_kv_tokens += num_computed
    allocate(self, request, blocks_for(self, num_computed + num_tokens))
    move_in(self, request)
    schedule(self, step, request, num_tokens)
    return True


def evict_for_head(self: Any, step: Any, cap: int) -> bool:
    """Preempt one less urgent request for the head of the queue, if enough of them run to let it in.

    Only a request that never ran may do this, and nobody returns in the step that evicted it: so each
    eviction serves a first admission, and requests never evict one another in turns.
    """
    index = head_of_queue(self, step.now)
    if index == NOBODY or self.requests[index].state != WAITING:
        return False
    head = self.requests[index]
    num_tokens = min(num_known_tokens(head), cap)
    if step.budget == 0 or (num_tokens > step.budget and not self.config.enable_chunked_prefill):
        return False
    num_less_urgent = 0
    for place in range(self.own.num_running):
        request = self.requests[self.running[place]]
        if is_less_urgent(self, request, head) and not is_aged(self, request, step.now):
            self.candidates[num_less_urgent] = request.index
            num_less_urgent += 1
    if num_less_urgent == 0:
        return False
    if num_blocks_missing(self, head, num_tokens, 0, 0) > num_freed_by(self, num_less_urgent):
        return False
    preempt(self, step, self.requests[choose_among(self, num_less_urgent)])
    return True


class PreemptiveRung(PagedRung):
    """Decodes first, then chunks; blocks are taken as tokens need them, and victims come back later."""

    Config = PreemptiveConfig
    running_order = running_order
    ends_at_own_preemption = ends_at_own_preemption
    admit_waiting = admit_waiting
    try_admit = try_admit

    @classmethod
    def numbers(cls, config: ComponentConfig, means: Means) -> Numbers:
        """With host memory in blocks and the link to it."""
        assert isinstance(config, PreemptiveConfig)
        numbers = super().numbers(config, means)
        bandwidth_gb_s = config.swap_bandwidth_gb_s
        return {
            **numbers,
            "victim": numbers["victim"] if config.victim is None else numbers_of(config)["victim"],
            "aging_s": inf if config.aging_s is None else config.aging_s,
            "block_bytes": means.block_bytes,
            "num_swap_blocks": int(config.swap_space_gib * GIB / means.block_bytes),
            "swap_bytes_per_s": (
                means.host_link_bytes_per_s if bandwidth_gb_s is None else bandwidth_gb_s * GIGA
            ),
        }

    @classmethod
    def job_length(cls, config: ComponentConfig, seed: int) -> Callable[[str, int, int], float] | None:
        """What `sjf` may know of the answers' lengths."""
        assert isinstance(config, PreemptiveConfig)
        if config.policy != "sjf" or config.length_knowledge == "oracle":
            return None
        if config.length_knowledge == "prompt_only":
            return lambda request_id, num_prompt_tokens, num_output_tokens: num_prompt_tokens
        error = config.prediction_error or 0.0
        return lambda request_id, num_prompt_tokens, num_output_tokens: (
            num_output_tokens * math.exp(error * length_z(seed, request_id))
        )

    @classmethod
    def notes(cls, config: ComponentConfig, requests: NDArray[Any], own: NDArray[Any]) -> list[str]:
        """Also how often host memory was too full."""
        notes = super().notes(config, requests, own)
        for num_turned_away, num_moved_out in {
            (int(replica["num_turned_away"]), int(replica["num_moved_out"])): None for replica in own
        }:
            if num_turned_away:
                notes.append(
                    f"host memory was too full for {num_turned_away} preempted requests, which were "
                    f"recomputed; {num_moved_out} were swapped"
                )
        return notes


PreemptiveScheduler.rung = PreemptiveRung
