"""Paged KV cache on demand, with preemption when it runs out: what rungs 4 and 5 share."""

from __future__ import annotations

from typing import Any, Literal

from numpy.typing import NDArray
from pydantic import Field, ValidationInfo, field_validator

from cbsim.base.binding import apart
from cbsim.config.section import ComponentConfig
from cbsim.core.layout import (
    FCFS,
    FITS,
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
from cbsim.core.pool import give_back_behind, grow, num_at_most, num_missing
from cbsim.core.transfers import defers_release
from cbsim.core.verbs import num_wanted, preempt, schedule
from cbsim.core.waiting_queue import is_aged, is_less_urgent
from cbsim.schedulers.admission import admit_waiting
from cbsim.schedulers.scheduler import Means, Numbers, Scheduler, SchedulerConfig, numbers_of
from cbsim.schedulers.speculation import SpeculativeConfig, fits_budget


def num_watermark_blocks(watermark: float, num_blocks: int) -> int:
    """Blocks that stay free after an admission; vLLM's pool counts one reserved null block more."""
    return int(watermark * (num_blocks + 1))


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
    speculative: SpeculativeConfig | None = None
    """Speculative decoding; null has none."""

    def kv_at_admission(self, num_blocks: int, block_size: int) -> list[str]:
        """See `SchedulerConfig.kv_at_admission`."""
        told = ["room for a whole prompt needed at admission"] if self.reserve_full_isl else []
        if self.watermark:
            num_kept = num_watermark_blocks(self.watermark, num_blocks)
            told.append(f"{num_kept * block_size:,} tokens kept free by the watermark")
        return told

    @field_validator("speculative")
    @classmethod
    def _fits_into_a_step(
        cls, value: SpeculativeConfig | None, info: ValidationInfo
    ) -> SpeculativeConfig | None:
        return fits_budget(value, info.data.get("max_tokens_per_step"))


def rejects(self: Any, request: Any) -> int:
    """A request that outgrows the whole KV cache, or a prompt that must stay whole and never fits."""
    config = self.config
    num_tokens = request.num_prompt_tokens + request.num_output_tokens - 1 + num_drafted(self, request)
    if num_at_most(self, num_tokens) > self.own.num_blocks:
        return TOO_MANY_BLOCKS
    most = config.max_tokens_per_step - config.num_extra_slots
    splits = config.enable_chunked_prefill or 0 < config.chunk_size <= most
    if not splits and request.num_prompt_tokens > most:
        return PROMPT_TOO_LONG
    return FITS


def num_drafted(self: Any, request: Any) -> int:
    """Tokens beyond its own for which a request must find KV blocks, or it may preempt itself for ever.

    One that brings a list of accepted drafts along is taken to need no more than with all of them accepted.
    """
    config = self.config
    if config.num_speculative_tokens == 0:
        return 0
    extra = self.extras[request.index]
    if extra.end_accepted > extra.first_accepted:
        return int(config.num_lookahead_tokens)
    return int(self.own.num_in_flight * config.num_speculative_tokens + config.num_lookahead_tokens)


def decide(self: Any, step: Any) -> None:
    """One pass over the running list, then admissions unless something was preempted."""
    cap = chunk_cap(self)
    serve_running(self, step, cap)
    step.num_served = step.num_slices
    if step.num_preempted == 0:
        admit_waiting(self, step, cap)


def chunk_cap(self: Any) -> int:
    """Most tokens of one request in this step.

    Never more than a step has: a preempted request that may not be split, and with its answer has outgrown
    the budget, would wait for ever.
    """
    config = self.config
    most = config.max_tokens_per_step - config.num_extra_slots
    return min(config.chunk_size, most) if config.chunk_size else most


def serve_running(self: Any, step: Any, cap: int) -> None:
    """Give each running request, in their order, what it wants while the budget lasts."""
    num_visited, requests, order = running_order(self), self.requests, self.order
    num_extra, passes_over = self.config.num_extra_slots, may_pass_over(self)
    for index in order[:num_visited]:
        if step.budget <= num_extra:
            return
        request = requests[index]
        num_tokens = num_wanted(request)
        if num_tokens == 0 or request.state != RUNNING:
            continue
        if passes_over and is_passed_over(self, request):
            continue
        if num_tokens > cap or num_tokens + num_extra > step.budget:
            num_tokens = min(cap, step.budget - num_extra)
        was_prefilling = not request.samples
        outcome = make_room(self, step, request, num_tokens)
        if outcome == HAS_ROOM:
            schedule(self, step, request, num_tokens)
            if was_prefilling:
                step.visits_prefill += 1
        elif outcome == NOBODY_MAY_GO or ends_at_own_preemption(self):
            return


def may_pass_over(self: Any) -> bool:
    """Whether a running request may be passed over in this step at all."""
    return bool(self.config.num_stages > 1)


def is_passed_over(self: Any, request: Any) -> bool:
    """Whether a running request gets nothing, as its last token has not yet left the stages of a pipeline."""
    return self.own.num_calls < request.resumes_at_call


def running_order(self: Any) -> int:
    """Fill `order` with the running requests in the order in which they are served; how many."""
    running, order, num_running = self.running, self.order, self.own.num_running
    for place in range(num_running):
        order[place] = running[place]
    return num_running


HAS_ROOM, IS_VICTIM, NOBODY_MAY_GO = range(3)
"""What came of `make_room`: the request has its blocks, was itself preempted, or may preempt nobody."""


def make_room(self: Any, step: Any, request: Any, num_tokens: int) -> int:
    """Give a running request the blocks for its next tokens, preempting others while they don't fit.

    Where KV may be written to the blocks of a step under way, whoever is in one is not preempted.
    """
    own = self.own
    num_resident = request.num_computed_tokens + (num_tokens + self.config.num_lookahead_tokens)
    if own.has_groups:
        give_back_behind(self, request)
    elif num_resident <= request.num_blocks * own.block_size:
        return HAS_ROOM
    num_wanting = num_missing(self, request, num_resident)
    while num_wanting > own.num_free:
        victim = self.requests[choose_victim(self, step.now)]
        if defers_release(self) and is_under_way(self, step, victim):
            return NOBODY_MAY_GO
        preempt(self, step, victim)
        if victim.index == request.index:
            return IS_VICTIM
    if num_wanting:
        grow(self, request, num_resident)
    return HAS_ROOM


def is_under_way(self: Any, step: Any, request: Any) -> bool:
    """Whether a step under way, other than the one being decided, computes tokens of a request."""
    num_launched = request.num_launched_tokens
    for place in range(step.num_slices):
        if self.slices[step.place][place].request == request.index:
            num_launched -= self.slices[step.place][place].num_tokens
    return bool(num_launched > 0)


@apart
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
            "num_watermark_blocks": num_watermark_blocks(config.watermark, means.num_blocks),
            "victim": LAST_ADMITTED if config.policy == "fcfs" else LEAST_URGENT,
        }

    @classmethod
    def num_tokens_needed(cls, request: Any, numbers: Numbers) -> int:
        """Also for drafts in flight and the drafter's own."""
        num_in_flight = int(numbers.get("num_stages", 1) + numbers.get("async_scheduling", 0))
        num_drafts, num_ahead = (
            int(numbers.get(f"num_{name}_tokens", 0)) for name in ("speculative", "lookahead")
        )
        return super().num_tokens_needed(request, numbers) + num_in_flight * num_drafts + num_ahead

    @classmethod
    def notes(cls, config: ComponentConfig, requests: Any, own: NDArray[Any]) -> list[str]:
        """That a policy had nothing to go by."""
        assert isinstance(config, PagedConfig)
        if config.policy == "fcfs":
            return []
        waited = (requests["state"] != REJECTED) & (requests["replica"] >= 0)
        if config.policy == "edf":
            figures = (requests["arrival_s"] + requests["deadline_s"])[waited]
        else:
            by = {"priority": "priority", "sjf": "job_length", "fair": "user_number"}[config.policy]
            figures = requests[by][waited]
        if len(figures) and (figures != figures[0]).any():
            return []
        return [
            f"policy: {config.policy} found nothing that tells requests apart: "
            "they were served in order of arrival"
        ]
