"""Rung 3: chunked prefill."""

from __future__ import annotations

from typing import Any

from pydantic import Field, ValidationInfo, field_validator

from cbsim.core.layout import NOBODY
from cbsim.core.verbs import is_prefilling, num_wanted, schedule
from cbsim.schedulers.reserving import ReservingScheduler, admit_reserved, next_admissible
from cbsim.schedulers.scheduler import SchedulerConfig
from cbsim.schedulers.speculation import SpeculativeConfig, fits_budget


class ChunkedPrefillConfig(SchedulerConfig):
    """Decodes are never stalled: prompts are cut to fit beside them, as in Sarathi-Serve (OSDI'24)."""

    max_num_seqs: int = Field(default=256, ge=1)
    """Most requests running at once."""
    max_tokens_per_step: int = Field(default=2048, ge=1)
    """Token budget of a step, decodes and prompt chunks together."""
    chunk_size: int = Field(default=512, ge=0)
    """Most prompt tokens of one request a step; 0 is no cap."""
    max_output_tokens: int | None = Field(default=None, ge=1)
    """Answer length to reserve KV cache for; null reserves exactly what the request will generate."""
    speculative: SpeculativeConfig | None = None
    """Speculative decoding; null has none."""

    @field_validator("speculative")
    @classmethod
    def _fits_into_a_step(
        cls, value: SpeculativeConfig | None, info: ValidationInfo
    ) -> SpeculativeConfig | None:
        return fits_budget(value, info.data.get("max_tokens_per_step"))


def decide(self: Any, step: Any) -> None:
    """Fill the budget with decodes, then with begun prompts, then with new ones."""
    chunk_size, num_extra = self.config.chunk_size, self.config.num_extra_slots
    if chunk_size == 0:
        chunk_size = self.config.max_tokens_per_step
    num_running, num_begun = self.own.num_running, 0
    for place in range(num_running):
        request = self.requests[self.running[place]]
        if is_prefilling(request):
            self.order[num_begun] = request.index
            num_begun += 1
        elif num_wanted(request) and step.budget > num_extra:
            schedule(self, step, request, min(num_wanted(request), step.budget - num_extra))
    for place in range(num_begun):
        request = self.requests[self.order[place]]
        if step.budget > num_extra:
            schedule(self, step, request, min(num_wanted(request), chunk_size, step.budget - num_extra))
    head = next_admissible(self, step)
    while head != NOBODY:
        newcomer = self.requests[head]
        admit_reserved(self, step, newcomer)
        schedule(self, step, newcomer, min(num_wanted(newcomer), chunk_size, step.budget - num_extra))
        head = next_admissible(self, step)


class ChunkedPrefillScheduler(ReservingScheduler):
    """Sarathi-Serve, sec. 4.2 (stall-free batching): every decode, then begun prompts, then new ones."""

    Config = ChunkedPrefillConfig
    decide = decide
