"""Rung 2: continuous (iteration-level) batching."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from cbsim.core.layout import NOBODY, PROMPT_TOO_LONG
from cbsim.core.verbs import num_wanted, schedule
from cbsim.schedulers.reserving import ReservingScheduler, admit_reserved, next_admissible
from cbsim.schedulers.reserving import rejects as rejects_reservation
from cbsim.schedulers.scheduler import SchedulerConfig


class ContinuousConfig(SchedulerConfig):
    """Requests join and leave at every step, as in Orca (OSDI'22) and vLLM V0."""

    max_num_seqs: int = Field(default=256, ge=1)
    """Most requests running at once."""
    max_tokens_per_step: int = Field(default=16_384, ge=1)
    """Most tokens a step. Prompts are never split, so a longer one is rejected."""
    prefill_first: bool = True
    """True runs prompts alone while decodes wait (vLLM V0); false mixes both in one step (Orca)."""
    max_output_tokens: int | None = Field(default=None, ge=1)
    """Answer length to reserve KV cache for; null reserves exactly what the request will generate."""


def rejects(self: Any, request: Any) -> int:
    """A prompt longer than a step, or a request larger than the KV cache, can never run."""
    if request.num_prompt_tokens > self.config.max_tokens_per_step:
        return PROMPT_TOO_LONG
    return rejects_reservation(self, request)


def decide(self: Any, step: Any) -> None:
    """Prompts that fit, alone or beside one token for every decode."""
    if self.config.prefill_first:
        admit_prompts(self, step)
        if step.num_slices == 0:
            decode_all(self, step)
    else:
        decode_all(self, step)
        admit_prompts(self, step)


def decode_all(self: Any, step: Any) -> None:
    """A token for each running request while the budget lasts."""
    for place in range(self.own.num_running):
        request = self.requests[self.running[place]]
        if step.budget and num_wanted(request):
            schedule(self, step, request, 1)


def admit_prompts(self: Any, step: Any) -> None:
    """Whole prompts from the head of the queue."""
    head = next_admissible(self, step)
    while head != NOBODY and self.requests[head].num_prompt_tokens <= step.budget:
        request = self.requests[head]
        admit_reserved(self, step, request)
        schedule(self, step, request, request.num_prompt_tokens)
        head = next_admissible(self, step)


class ContinuousScheduler(ReservingScheduler):
    """Whole prompts join whenever there is a slot, budget and KV cache for all their tokens."""

    Config = ContinuousConfig
    rejects = rejects
    decide = decide
