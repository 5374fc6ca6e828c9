"""Admission with the whole request's KV cache reserved: rungs 2 and 3."""

from __future__ import annotations

from typing import Any

from cbsim.core.layout import FITS, KV_BLOCKS, NOBODY, TOO_MANY_BLOCKS
from cbsim.core.pool import allocate, blocks_for
from cbsim.core.verbs import admit
from cbsim.core.waiting_queue import head_of_queue
from cbsim.schedulers.scheduler import Numbers, Scheduler


def num_reserved(self: Any, request: Any) -> int:
    """Blocks for the prompt and the most tokens the request may generate, drafts included."""
    num_output_tokens = max(request.num_output_tokens, self.config.max_output_tokens)
    num_drafted = self.config.num_speculative_tokens + self.config.num_lookahead_tokens
    return blocks_for(self, request.num_prompt_tokens + num_output_tokens + num_drafted)


def rejects(self: Any, request: Any) -> int:
    """A request larger than the whole KV cache can never run."""
    return TOO_MANY_BLOCKS if num_reserved(self, request) > self.own.num_blocks else FITS


def next_admissible(self: Any, step: Any) -> int:
    """The head of the queue, if a slot, budget and its whole reservation are free; else `NOBODY`."""
    own = self.own
    if step.budget <= self.config.num_extra_slots or own.num_running >= self.config.max_num_seqs:
        return NOBODY
    head = head_of_queue(self, step.now)
    if head != NOBODY and num_reserved(self, self.requests[head]) > own.num_free:
        step.waiting_for = KV_BLOCKS
        return NOBODY
    return head


def admit_reserved(self: Any, step: Any, request: Any) -> None:
    """Admit a request and give it all the blocks it may ever need."""
    admit(self, step, request)
    allocate(self, request, num_reserved(self, request))


class ReservingScheduler(Scheduler):
    """Admits a request when blocks for its prompt and most output tokens are free, and never preempts."""

    reserves_ahead = True
    rejects = rejects

    @classmethod
    def num_tokens_needed(cls, request: Any, numbers: Numbers) -> int:
        """The whole reservation."""
        num_output_tokens = max(int(request["num_output_tokens"]), int(numbers.get("max_output_tokens", 0)))
        return int(request["num_prompt_tokens"]) + num_output_tokens
