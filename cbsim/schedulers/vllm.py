"""Rung 5: exactly what vLLM's V1 scheduler decides."""

from __future__ import annotations

from typing import Any, Literal

from cbsim.config.section import ComponentConfig
from cbsim.core.layout import FCFS
from cbsim.schedulers.paged import PagedConfig, PagedScheduler
from cbsim.schedulers.paged import chunk_cap as paged_chunk_cap
from cbsim.schedulers.scheduler import Means, Numbers


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


V0_15, V0_20, V0_33 = range(3)
"""Codes of `version`."""


def chunk_cap(self: Any) -> int:
    """The cap spares a lone request (0.33)."""
    if self.config.version == V0_33 and self.own.num_running + self.own.num_waiting <= 1:
        return self.config.max_tokens_per_step
    return paged_chunk_cap(self)


def ends_at_own_preemption(self: Any) -> bool:
    """0.33 goes on with the next running request under `priority`."""
    return self.config.policy == FCFS or self.config.version != V0_33


class VllmScheduler(PagedScheduler):
    """The rules of `PagedScheduler` as they are, with the differences between vLLM's releases.

    Before 0.33 a lone request was capped like any other, and a request that preempted itself ended the pass
    under `priority` too; 0.15 had no `reserve_full_isl`, 0.15 and 0.20 no watermark.
    """

    Config = VllmConfig
    chunk_cap = chunk_cap
    ends_at_own_preemption = ends_at_own_preemption

    @classmethod
    def numbers(cls, config: ComponentConfig, means: Means) -> Numbers:
        """0.15 had no `reserve_full_isl`, 0.15 and 0.20 no watermark."""
        assert isinstance(config, VllmConfig)
        numbers = super().numbers(config, means)
        if config.version != "0.33":
            numbers["num_watermark_blocks"] = 0
        if config.version == "0.15":
            numbers["reserve_full_isl"] = 0
        return numbers
