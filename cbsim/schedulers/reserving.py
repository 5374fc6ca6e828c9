"""Admission with the whole request's KV cache reserved: rungs 2 and 3."""

from __future__ import annotations

from typing import Any

from cbsim.core.layout import FITS, KV_BLOCKS, NOBODY, TOO_MANY_BLOCKS
from cbsim.core.pool import allocate, blocks_for
from cbsim.core.verbs import admit
from cbsim.core.waiting_queue import head_of_queue
from cbsim.schedulers.base import Scheduler, StepPlan, WaitingFor
from cbsim.schedulers.rung import Numbers, Rung
from cbsim.workload.request import Request


class ReservingScheduler(Scheduler):
    """Admits a request when blocks for its prompt and most output tokens are free, and never preempts."""

    reserves_ahead = True

    def num_reserved(self, request: Request) -> int:
        """Blocks for the prompt and the most tokens the request may generate."""
        limit = getattr(self.config, "max_output_tokens", None)
        num_output_tokens = max(request.num_output_tokens, limit or 0)
        return self.pool.blocks_for(request.num_prompt_tokens + num_output_tokens)

    def rejection(self, request: Request) -> str | None:
        """A request larger than the whole KV cache can never run."""
        num_reserved = self.num_reserved(request)
        if num_reserved > self.pool.num_blocks:
            return f"needs {num_reserved} KV blocks, the cache has {self.pool.num_blocks}"
        return None

    def next_admissible(self, step: StepPlan) -> Request | None:
        """The head of the waiting queue, if a slot, budget and its whole reservation are free."""
        if step.budget == 0 or self.num_running >= self.max_num_seqs:
            return None
        request = self.waiting.head(step.now)
        if request is not None and self.num_reserved(request) > self.pool.num_free:
            step.waiting_for = WaitingFor.KV_BLOCKS
            return None
        return request

    def admit_reserved(self, step: StepPlan, request: Request) -> None:
        """Admit a request and give it all the blocks it may ever need."""
        self.admit(step, request)
        self.pool.allocate(request, self.num_reserved(request))


# The rules, over the core's records


def num_reserved(self: Any, request: Any) -> int:
    """Blocks for the prompt and the most tokens the request may generate."""
    num_output_tokens = max(request.num_output_tokens, self.config.max_output_tokens)
    return blocks_for(self, request.num_prompt_tokens + num_output_tokens)


def rejects(self: Any, request: Any) -> int:
    """A request larger than the whole KV cache can never run."""
    return TOO_MANY_BLOCKS if num_reserved(self, request) > self.own.num_blocks else FITS


def next_admissible(self: Any, step: Any) -> int:
    """The head of the queue, if a slot, budget and its whole reservation are free; else `NOBODY`."""
    own = self.own
    if step.budget == 0 or own.num_running >= self.config.max_num_seqs:
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


class ReservingRung(Rung):
    """Admits a request when blocks for its prompt and most output tokens are free, and never preempts."""

    reserves_ahead = True
    rejects = rejects

    @classmethod
    def num_tokens_needed(cls, request: Any, numbers: Numbers) -> int:
        """The whole reservation."""
        num_output_tokens = max(int(request["num_output_tokens"]), int(numbers["max_output_tokens"]))
        return int(request["num_prompt_tokens"]) + num_output_tokens
