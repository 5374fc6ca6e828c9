"""Rung 5: exactly what vLLM's V1 scheduler decides."""

from __future__ import annotations

from typing import Literal

from cbsim.schedulers.base import Resources
from cbsim.schedulers.paged import PagedConfig, PagedScheduler


class VllmConfig(PagedConfig):
    """vLLM's V1 scheduler, one replica, no speculative decoding, full attention."""

    policy: Literal["fcfs", "priority"] = "fcfs"
    """Who is admitted first, and who is preempted last."""
    version: Literal["0.15", "0.20", "0.33"] = "0.33"
    """The vLLM release to follow, where releases differ."""
    async_scheduling: bool = True
    """Decide the next step while one is running (two in flight), as vLLM does by default."""

    @property
    def reuses_unknown_blocks_first(self) -> bool:
        """Before 0.33 every released block went to the tail of the free queue."""
        return self.version == "0.33"


class VllmScheduler(PagedScheduler):
    """The rules of `PagedScheduler` as they are, with the differences between vLLM's releases.

    Before 0.33 a lone request was capped like any other, and a request that preempted itself ended the pass
    under `priority` too; 0.15 had no `reserve_full_isl`, 0.15 and 0.20 no watermark.
    """

    Config = VllmConfig
    can_fast_forward = True
    decodes_first = False
    config: VllmConfig

    def __init__(self, config: VllmConfig, resources: Resources) -> None:
        if config.version != "0.33":
            config = config.model_copy(update={"watermark": 0.0})
        if config.version == "0.15":
            config = config.model_copy(update={"reserve_full_isl": False})
        super().__init__(config, resources)

    def chunk_cap(self) -> int:
        """The cap spares a lone request (0.33)."""
        is_lone = self.num_running + len(self.waiting) <= 1
        if is_lone and self.config.version == "0.33":
            return self.max_tokens_per_step
        return super().chunk_cap()

    def ends_at_own_preemption(self) -> bool:
        """0.33 goes on with the next running request under `priority`."""
        return self.config.policy == "fcfs" or self.config.version != "0.33"
