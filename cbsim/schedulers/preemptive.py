"""Rung 4: KV blocks on demand, and preemption by recompute when they run out."""

from __future__ import annotations

from pydantic import Field

from cbsim.request import Request
from cbsim.schedulers.paged import PagedConfig, PagedScheduler


class PreemptiveConfig(PagedConfig):
    """Rung 3 on a paged KV cache."""

    chunk_size: int = Field(default=512, ge=0)
    """Most tokens of one request a step; 0 is no cap."""


class PreemptiveScheduler(PagedScheduler):
    """Decodes first, then chunks; blocks are taken as tokens need them, and victims are recomputed."""

    Config = PreemptiveConfig

    def running_order(self) -> list[Request]:
        """Decodes before prompts, each in order of admission."""
        return sorted(self.running, key=lambda request: request.is_prefilling)

    def ends_at_own_preemption(self) -> bool:
        """Others may still want tokens, as prompts are served last."""
        return False
