"""Head: why the first in the queue was not admitted."""

from __future__ import annotations

from cbsim.base.units import format_seconds
from cbsim.schedulers import Scheduler
from cbsim.schedulers.paged import PagedScheduler
from cbsim.schedulers.reserving import ReservingScheduler
from cbsim.schedulers.static import StaticScheduler
from cbsim.workload.request import Request


def why_waiting(scheduler: Scheduler, now: float, budget: int | None, num_preempted: int) -> str:
    """A few words, right after a decision that left the head of the queue where it was.

    `budget` is what the decision left of the step's tokens, `None` if it made no step; `num_preempted` is how
    many it preempted.
    """
    head = scheduler.waiting.head(now)
    if head is None:
        return "nobody waits"
    if isinstance(scheduler, StaticScheduler):
        return _static(scheduler, head)
    if num_preempted and isinstance(scheduler, PagedScheduler):
        return "a step that preempts admits nobody"
    max_num_seqs = getattr(scheduler.config, "max_num_seqs", None)
    if max_num_seqs is not None and scheduler.num_running >= max_num_seqs:
        return f"no slot: {scheduler.num_running} run, max_num_seqs is {max_num_seqs}"
    if budget == 0:
        return f"no budget: all {scheduler.max_tokens_per_step} tokens are taken"
    return _blocks(scheduler, head, budget) or "the scheduler let it wait"


def _static(scheduler: StaticScheduler, head: Request) -> str:
    if scheduler.batch:
        return f"the batch of {len(scheduler.batch)} runs until its last request has ended"
    until_s = head.arrival_s + scheduler.timeout_s
    filled = f"{len(scheduler.waiting)} of {scheduler.num_slots}"
    return f"the batch fills up: {filled}, until {format_seconds(until_s)}"


def _blocks(scheduler: Scheduler, head: Request, budget: int | None) -> str | None:
    free = scheduler.pool.num_free
    if isinstance(scheduler, ReservingScheduler):
        needed = scheduler.num_reserved(head)
        if needed > free:
            return f"no KV blocks: prompt and answer take {needed}, {free} free"
        if budget is not None and head.num_prompt_tokens > budget:
            return f"no budget: prompt of {head.num_prompt_tokens} tokens, {budget} left, and none is split"
    if isinstance(scheduler, PagedScheduler):
        missing = scheduler.num_blocks_missing(
            head, head.num_computed_tokens + 1, scheduler.pool.find_prefix(head)
        )
        if missing > 0:
            return f"no KV blocks: {missing + free} needed, {free} free"
        if budget is not None and not scheduler.config.enable_chunked_prefill:
            return f"no budget: its prompt must stay whole, {budget} tokens left"
    needed = scheduler.pool.blocks_for(head.num_known_tokens)
    return f"no KV blocks: {needed} needed, {free} free" if needed > free else None
