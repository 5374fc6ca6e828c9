"""Paged KV cache on demand, with preemption when it runs out: what rungs 4 and 5 share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from cbsim.schedulers.base import Resources, Scheduler, SchedulerConfig, StepPlan, WaitingFor
from cbsim.schedulers.kvcache import NO_HIT, PrefixHit
from cbsim.schedulers.queues import FcfsQueue, RankedQueue, WaitingQueue, by_priority
from cbsim.schedulers.victims import VictimRule, last_admitted
from cbsim.workload.request import Request, RequestState


class PagedConfig(SchedulerConfig):
    """Settings of the schedulers that take KV blocks as they need them."""

    max_num_seqs: int = Field(default=256, ge=1)
    """Most requests running at once."""
    max_tokens_per_step: int = Field(default=2048, ge=1)
    """Token budget of a step, decodes and prompt chunks together (vLLM's `max_num_batched_tokens`)."""
    chunk_size: int = Field(default=0, ge=0)
    """Most tokens of one request a step; 0 is no cap (vLLM's `long_prefill_token_threshold`)."""
    policy: Literal["fcfs", "priority", "sjf", "edf", "fair"] = "fcfs"
    """Who is admitted first, and who is preempted last."""
    enable_chunked_prefill: bool = True
    """False admits a prompt only if all of it (after the cap) fits in the step's budget."""
    reserve_full_isl: bool = True
    """Admit a request only if all its known tokens would fit now, not only the first chunk. Nothing is
    reserved all the same: later ones may take the blocks."""
    watermark: float = Field(default=0.0, ge=0, lt=1)
    """Share of all blocks that must stay free after an admission, unless nothing runs."""


class PagedScheduler(Scheduler):
    """The running list first, then the waiting queue, and never the queue in a step that preempted.

    The rules are those of vLLM's V1 scheduler (`vllm/v1/core/sched/scheduler.py`); a subclass says in which
    order, who is a victim, and where it departs from them.
    """

    config: PagedConfig

    def __init__(self, config: PagedConfig, resources: Resources) -> None:
        super().__init__(config, resources)
        self.waiting = self.new_queue()
        self.choose_victim: VictimRule = last_admitted if config.policy == "fcfs" else self.least_urgent
        # vLLM's pool counts one reserved null block more.
        self.num_watermark_blocks = int(config.watermark * (self.pool.num_blocks + 1))

    def new_queue(self) -> WaitingQueue:
        """The waiting queue in the configured order."""
        return FcfsQueue() if self.config.policy == "fcfs" else RankedQueue(by_priority)

    def rejection(self, request: Request) -> str | None:
        """A request that outgrows the whole KV cache, or a prompt that must stay whole and never fits."""
        num_blocks = self.pool.blocks_for(request.num_prompt_tokens + request.num_output_tokens - 1)
        if num_blocks > self.pool.num_blocks:
            return f"needs {num_blocks} KV blocks, the cache has {self.pool.num_blocks}"
        chunk_size = self.config.chunk_size
        splits = self.config.enable_chunked_prefill or 0 < chunk_size <= self.max_tokens_per_step
        if not splits and request.num_prompt_tokens > self.max_tokens_per_step:
            return (
                f"prompt of {request.num_prompt_tokens} tokens exceeds max_tokens_per_step "
                f"{self.max_tokens_per_step} and enable_chunked_prefill is false"
            )
        return None

    def decide(self, step: StepPlan) -> None:
        """One pass over the running list, then admissions unless something was preempted."""
        cap = self.chunk_cap()
        self.serve_running(step, cap)
        if not step.preempted:
            self.admit_waiting(step, cap)

    def chunk_cap(self) -> int:
        """Most tokens of one request in this step.

        Never more than a step has: a preempted request that may not be split, and with its answer has
        outgrown the budget, would wait for ever.
        """
        return min(self.config.chunk_size or self.max_tokens_per_step, self.max_tokens_per_step)

    def serve_running(self, step: StepPlan, cap: int) -> None:
        """Give each running request, in order of admission, what it wants while the budget lasts."""
        for request in self.running_order():
            if step.budget == 0:
                return
            num_tokens = min(self.num_wanted(request), cap, step.budget)
            if num_tokens == 0 or request.state is not RequestState.RUNNING:
                continue
            if self.make_room(step, request, num_tokens):
                self.schedule(step, request, num_tokens)
            elif self.ends_at_own_preemption():
                return

    def running_order(self) -> list[Request]:
        """The running requests in the order in which they are served: that of admission."""
        return list(self.running)

    def make_room(self, step: StepPlan, request: Request, num_tokens: int) -> bool:
        """Give a running request the blocks for its next tokens, preempting others while they don't fit.

        False if the request was itself the victim.
        """
        num_missing = self.pool.blocks_for(request.num_computed_tokens + num_tokens) - request.num_blocks
        while num_missing > self.pool.num_free:
            victim = self.victim(step.now)
            self.preempt(step, victim)
            if victim is request:
                return False
        if num_missing > 0:
            self.pool.allocate(request, num_missing)
        return True

    def victim(self, now: float) -> Request:
        """The running request to preempt: the one admitted last, or the last in the queue's order."""
        return self.choose_victim(self.running)

    def least_urgent(self, candidates: Sequence[Request]) -> Request:
        """The last in the queue's order."""
        return max(candidates, key=self.waiting.rank)

    def ends_at_own_preemption(self) -> bool:
        """Whether the pass over the running list ends when the visited request was itself the victim."""
        return self.config.policy == "fcfs"

    def notes(self) -> list[str]:
        """That a policy had nothing to go by."""
        if self.config.policy == "fcfs" or self.waiting.tells_apart:
            return []
        return [
            f"policy: {self.config.policy} found nothing that tells requests apart: "
            "they were served in order of arrival"
        ]

    def admit_waiting(self, step: StepPlan, cap: int) -> None:
        """Admit from the head of the queue while slots, budget and blocks last; nobody overtakes the head."""
        while step.budget > 0 and self.num_running < self.max_num_seqs:
            request = self.waiting.head(step.now)
            if request is None or not self.try_admit(step, request, cap):
                return

    def try_admit(self, step: StepPlan, request: Request, cap: int) -> bool:
        """Admit the head of the queue with its first chunk, if they fit."""
        hit = self.pool.find_prefix(request)
        num_cached = len(hit.blocks) * self.pool.block_size
        num_tokens = self.first_chunk(step, request, num_cached, cap)
        if num_tokens == 0 or not self.finds_blocks(step, request, num_cached + num_tokens, hit):
            return False
        self.admit(step, request, hit)
        self.pool.allocate(request, self.pool.blocks_for(num_cached + num_tokens) - request.num_blocks)
        self.schedule(step, request, num_tokens)
        return True

    def first_chunk(self, step: StepPlan, request: Request, num_computed: int, cap: int) -> int:
        """Tokens that a request would compute if admitted now; 0 if they must stay whole and don't fit."""
        num_tokens = min(request.num_known_tokens - num_computed, cap)
        if num_tokens > step.budget and not self.config.enable_chunked_prefill:
            return 0
        return min(num_tokens, step.budget)

    def finds_blocks(
        self, step: StepPlan, request: Request, num_tokens: int, hit: PrefixHit = NO_HIT
    ) -> bool:
        """Whether the head of the queue finds its blocks; if not, that is what all others wait for."""
        if self.num_blocks_missing(request, num_tokens, hit) <= 0:
            return True
        step.waiting_for = WaitingFor.KV_BLOCKS
        return False

    def num_blocks_missing(self, request: Request, num_tokens: int, hit: PrefixHit = NO_HIT) -> int:
        """Blocks missing to admit a request that is to hold KV of `num_tokens`; 0 or less if none."""
        num_resident = request.num_known_tokens if self.config.reserve_full_isl else num_tokens
        num_needed = self.pool.blocks_for(num_resident) - len(hit.blocks) + hit.num_free
        return num_needed + (self.num_watermark_blocks if self.num_running else 0) - self.pool.num_free
