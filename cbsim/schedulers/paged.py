"""Paged KV cache on demand, with preemption when it runs out: what rungs 4 and 5 share."""

from __future__ import annotations

from typing import Any, Literal

from numpy.typing import NDArray
from pydantic import Field

from cbsim.config.section import ComponentConfig
from cbsim.core.layout import (
    FCFS,
    FITS,
    KV_BLOCKS,
    LAST_ADMITTED,
    LEAST_PROGRESS,
    LEAST_URGENT,
    LOWEST_PRIORITY,
    MOST_BLOCKS,
    NOBODY,
    PROMPT_TOO_LONG,
    REJECTED,
    RUNNING,
    TOO_MANY_BLOCKS,
)
from cbsim.core.pool import allocate, blocks_for, find_prefix, num_known_tokens
from cbsim.core.verbs import admit, num_wanted, preempt, schedule
from cbsim.core.waiting_queue import head_of_queue, is_aged, is_less_urgent
from cbsim.schedulers.scheduler import Means, Numbers, Scheduler, SchedulerConfig, numbers_of


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


def rejects(self: Any, request: Any) -> int:
    """A request that outgrows the whole KV cache, or a prompt that must stay whole and never fits."""
    config = self.config
    if blocks_for(self, request.num_prompt_tokens + request.num_output_tokens - 1) > self.own.num_blocks:
        return TOO_MANY_BLOCKS
    splits = config.enable_chunked_prefill or 0 < config.chunk_size <= config.max_tokens_per_step
    if not splits and request.num_prompt_tokens > config.max_tokens_per_step:
        return PROMPT_TOO_LONG
    return FITS


def decide(self: Any, step: Any) -> None:
    """One pass over the running list, then admissions unless something was preempted."""
    cap = chunk_cap(self)
    serve_running(self, step, cap)
    if step.num_preempted == 0:
        admit_waiting(self, step, cap)


def chunk_cap(self: Any) -> int:
    """Most tokens of one request in this step.

    Never more than a step has: a preempted request that may not be split, and with its answer has outgrown
    the budget, would wait for ever.
    """
    config = self.config
    if config.chunk_size == 0:
        return config.max_tokens_per_step
    return min(config.chunk_size, config.max_tokens_per_step)


def serve_running(self: Any, step: Any, cap: int) -> None:
    """Give each running request, in their order, what it wants while the budget lasts."""
    num_visited = running_order(self)
    for place in range(num_visited):
        if step.budget == 0:
            return
        request = self.requests[self.order[place]]
        num_tokens = min(num_wanted(request), cap, step.budget)
        if num_tokens == 0 or request.state != RUNNING:
            continue
        if make_room(self, step, request, num_tokens):
            schedule(self, step, request, num_tokens)
        elif ends_at_own_preemption(self):
            return


def running_order(self: Any) -> int:
    """Fill `order` with the running requests in the order in which they are served; how many."""
    num_running = self.own.num_running
    for place in range(num_running):
        self.order[place] = self.running[place]
    return num_running


def make_room(self: Any, step: Any, request: Any, num_tokens: int) -> bool:
    """Give a running request the blocks for its next tokens, preempting others while they don't fit.

    False if the request was itself the victim.
    """
    num_missing = blocks_for(self, request.num_computed_tokens + num_tokens) - request.num_blocks
    while num_missing > self.own.num_free:
        victim = choose_victim(self, step.now)
        preempt(self, step, self.requests[victim])
        if victim == request.index:
            return False
    if num_missing > 0:
        allocate(self, request, num_missing)
    return True


def choose_victim(self: Any, now: float) -> int:
    """The running request to preempt, among those that have not aged; if all have, the last to arrive."""
    own, num_young, last = self.own, 0, NOBODY
    for place in range(own.num_running):
        index = self.running[place]
        last = max(last, index)
        if not is_aged(self, self.requests[index], now):
            self.candidates[num_young] = index
            num_young += 1
    if num_young == 0:
        return last
    return choose_among(self, num_young)


def choose_among(self: Any, num_candidates: int) -> int:
    """One of the first `num_candidates` candidates, who stand in order of admission, by the victim rule.

    `most_blocks` spares the one admitted first while there are others: the largest is often the next to
    finish, and without anyone who is safe requests could preempt each other for ever.
    """
    rule = self.config.victim
    if rule == LAST_ADMITTED:
        return self.candidates[num_candidates - 1]
    first = 1 if rule == MOST_BLOCKS and num_candidates > 1 else 0
    chosen = self.candidates[first]
    for place in range(first + 1, num_candidates):
        if is_rather_preempted(self, self.candidates[place], chosen):
            chosen = self.candidates[place]
    return chosen


def is_rather_preempted(self: Any, index: int, other: int) -> bool:
    """Whether the victim rule takes one request before another; ties go to the last to arrive."""
    rule, request, compared = self.config.victim, self.requests[index], self.requests[other]
    if rule == LOWEST_PRIORITY:
        figure, against = request.priority, compared.priority
    elif rule == MOST_BLOCKS:
        figure, against = request.num_blocks, compared.num_blocks
    elif rule == LEAST_PROGRESS:
        figure, against = -request.num_computed_tokens, -compared.num_computed_tokens
    else:
        return is_less_urgent(self, request, compared)
    return figure > against or (figure == against and index > other)


def ends_at_own_preemption(self: Any) -> bool:
    """Whether the pass over the running list ends when the visited request was itself the victim."""
    return self.config.policy == FCFS


def admit_waiting(self: Any, step: Any, cap: int) -> None:
    """Admit from the head of the queue while slots, budget and blocks last; nobody overtakes the head."""
    while step.budget > 0 and self.own.num_running < self.config.max_num_seqs:
        head = head_of_queue(self, step.now)
        if head == NOBODY or not try_admit(self, step, self.requests[head], cap):
            return


def try_admit(self: Any, step: Any, request: Any, cap: int) -> bool:
    """Admit the head of the queue with its first chunk, if they fit."""
    num_found, num_found_free = find_prefix(self, request)
    num_cached = num_found * self.own.block_size
    num_tokens = first_chunk(self, step, request, num_cached, cap)
    if num_tokens == 0:
        return False
    if not finds_blocks(self, step, request, num_cached + num_tokens, num_found, num_found_free):
        return False
    admit(self, step, request, num_found)
    allocate(self, request, blocks_for(self, num_cached + num_tokens) - request.num_blocks)
    schedule(self, step, request, num_tokens)
    return True


def first_chunk(self: Any, step: Any, request: Any, num_computed: int, cap: int) -> int:
    """Tokens that a request would compute if admitted now; 0 if they must stay whole and don't fit."""
    num_tokens = min(num_known_tokens(request) - num_computed, cap)
    if num_tokens > step.budget and not self.config.enable_chunked_prefill:
        return 0
    return min(num_tokens, step.budget)


def finds_blocks(
    self: Any, step: Any, request: Any, num_tokens: int, num_found: int, num_found_free: int
) -> bool:
    """Whether the head of the queue finds its blocks; if not, that is what all others wait for."""
    if num_blocks_missing(self, request, num_tokens, num_found, num_found_free) <= 0:
        return True
    step.waiting_for = KV_BLOCKS
    return False


def num_blocks_missing(self: Any, request: Any, num_tokens: int, num_found: int, num_found_free: int) -> int:
    """Blocks missing to admit a request that is to hold KV of `num_tokens`; 0 or less if none.

    `num_found` of its blocks are cached; `num_found_free` of those are held by nobody.
    """
    own, config = self.own, self.config
    num_resident = num_known_tokens(request) if config.reserve_full_isl else num_tokens
    num_needed = blocks_for(self, num_resident) - num_found + num_found_free
    num_kept_free = config.num_watermark_blocks if own.num_running else 0
    return num_needed + num_kept_free - own.num_free


class PagedScheduler(Scheduler):
    """The running list first, then the waiting queue, and never the queue in a step that preempted.

    The rules are those of vLLM's V1 scheduler (`vllm/v1/core/sched/scheduler.py`); a subclass says in which
    order, who is a victim, and where it departs from them.
    """

    rejects = rejects
    decide = decide

    @classmethod
    def numbers(cls, config: ComponentConfig, means: Means) -> Numbers:
        """With the blocks that the watermark keeps free."""
        assert isinstance(config, PagedConfig)
        return {
            **numbers_of(config),
            # vLLM's pool counts one reserved null block more.
            "num_watermark_blocks": int(config.watermark * (means.num_blocks + 1)),
            "victim": LAST_ADMITTED if config.policy == "fcfs" else LEAST_URGENT,
        }

    @classmethod
    def notes(cls, config: ComponentConfig, requests: NDArray[Any], own: NDArray[Any]) -> list[str]:
        """That a policy had nothing to go by."""
        assert isinstance(config, PagedConfig)
        if config.policy == "fcfs":
            return []
        waited = requests[(requests["state"] != REJECTED) & (requests["replica"] >= 0)]
        if config.policy == "edf":
            figures = waited["arrival_s"] + waited["deadline_s"]
        else:
            figures = waited[
                {"priority": "priority", "sjf": "job_length", "fair": "user_number"}[config.policy]
            ]
        if len(figures) and (figures != figures[0]).any():
            return []
        return [
            f"policy: {config.policy} found nothing that tells requests apart: "
            "they were served in order of arrival"
        ]
