"""Rung 2: continuous (iteration-level) batching."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from cbsim.core.layout import NOBODY, PROMPT_TOO_LONG
from cbsim.core.verbs import num_wanted, schedule
from cbsim.schedulers.base import SchedulerConfig, StepPlan
from cbsim.schedulers.reserving import ReservingRung, ReservingScheduler, admit_reserved, next_admissible
from cbsim.schedulers.reserving import rejects as rejects_reservation
from cbsim.workload.request import Request


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


class ContinuousScheduler(ReservingScheduler):
    """Whole prompts join whenever there is a slot, budget and KV cache for all their tokens."""

    Config = ContinuousConfig
    can_fast_forward = True
    config: ContinuousConfig

    @property
    def prefill_excludes_decodes(self) -> bool:  # type: ignore[override]
        """Whether prompts run alone."""
        return self.config.prefill_first

    def rejection(self, request: Request) -> str | None:
        """A prompt longer than a step, or a request larger than the KV cache, can never run."""
        if request.num_prompt_tokens > self.max_tokens_per_step:
            return (
                f"prompt of {request.num_prompt_tokens} tokens exceeds max_tokens_per_step "
                f"{self.max_tokens_per_step} and is not split"
            )
        return super().rejection(request)

    def decide(self, step: StepPlan) -> None:
        """Prompts that fit, alone or beside one token for every decode."""
        if self.config.prefill_first:
            self._admit_prompts(step)
            if not step.slices:
                self._decode_all(step)
        else:
            self._decode_all(step)
            self._admit_prompts(step)

    def _decode_all(self, step: StepPlan) -> None:
        for request in self.running:
            if step.budget and self.num_wanted(request):
                self.schedule(step, request, 1)

    def _admit_prompts(self, step: StepPlan) -> None:
        while (request := self.next_admissible(step)) and request.num_prompt_tokens <= step.budget:
            self.admit_reserved(step, request)
            self.schedule(step, request, request.num_prompt_tokens)


# The rules, over the core's records


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


class ContinuousRung(ReservingRung):
    """Whole prompts join whenever there is a slot, budget and KV cache for all their tokens."""

    Config = ContinuousConfig
    rejects = rejects
    decide = decide


ContinuousScheduler.rung = ContinuousRung
