"""Head: why the first in the queue was not admitted."""

from __future__ import annotations

from cbsim.base.units import format_seconds
from cbsim.core.pool import blocks_for, find_prefix
from cbsim.core.stepping import Stepper
from cbsim.schedulers.admission import num_blocks_missing
from cbsim.schedulers.paged import PagedScheduler
from cbsim.schedulers.reserving import ReservingScheduler, num_reserved
from cbsim.schedulers.scheduler import Scheduler
from cbsim.schedulers.static import StaticScheduler
from cbsim.workload.request import Request


def why_waiting(
    stepper: Stepper, rung: type[Scheduler], now: float, budget: int | None, num_preempted: int
) -> str:
    """A few words, right after a decision that left the head of the queue where it was.

    `budget` is what the decision left of the step's tokens, `None` if it made no step; `num_preempted` is how
    many it preempted.
    """
    head, own, config = stepper.head(now), stepper.own, stepper.records.config
    if head is None:
        return "nobody waits"
    if issubclass(rung, StaticScheduler):
        return _static(stepper, head)
    if num_preempted and issubclass(rung, PagedScheduler):
        return "a step that preempts admits nobody"
    if own.num_running >= config.max_num_seqs:
        return f"no slot: {own.num_running} run, max_num_seqs is {config.max_num_seqs}"
    if budget == 0:
        return f"no budget: all {config.max_tokens_per_step} tokens are taken"
    return _blocks(stepper, rung, head, budget) or "the scheduler let it wait"


def _static(stepper: Stepper, head: Request) -> str:
    own, config = stepper.own, stepper.records.config
    if own.num_batch:
        return f"the batch of {own.num_batch} runs until its last request has ended"
    until_s = head.arrival_s + config.batch_timeout_s
    filled = f"{own.num_waiting} of {config.num_slots}"
    return f"the batch fills up: {filled}, until {format_seconds(until_s)}"


def _blocks(stepper: Stepper, rung: type[Scheduler], head: Request, budget: int | None) -> str | None:
    records, bound, free = stepper.records, stepper.world.bound, stepper.own.num_free
    if issubclass(rung, ReservingScheduler):
        needed = bound(num_reserved)(records, head)
        if needed > free:
            return f"no KV blocks: prompt and answer take {needed}, {free} free"
        if budget is not None and head.num_prompt_tokens > budget:
            return f"no budget: prompt of {head.num_prompt_tokens} tokens, {budget} left, and none is split"
    if issubclass(rung, PagedScheduler):
        found = bound(find_prefix)(records, head)
        missing = bound(num_blocks_missing)(records, head, head.num_computed_tokens + 1, *found)
        if missing > 0:
            return f"no KV blocks: {missing + free} needed, {free} free"
        if budget is not None and not records.config.enable_chunked_prefill:
            return f"no budget: its prompt must stay whole, {budget} tokens left"
    needed = blocks_for(records, head.num_known_tokens)
    return f"no KV blocks: {needed} needed, {free} free" if needed > free else None
