"""Rung 4: KV blocks on demand, and preemption when they run out."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from cbsim.schedulers.base import Resources, StepPlan
from cbsim.schedulers.kvcache import PrefixHit
from cbsim.schedulers.orders import OrderConfig, Policy, make_queue
from cbsim.schedulers.paged import PagedConfig, PagedScheduler
from cbsim.schedulers.queues import WaitingQueue
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
