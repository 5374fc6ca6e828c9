"""Why the head of the waiting queue was not admitted in a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cbsim.core.layout import KV_BLOCKS, NOBODY_WAITS, SLOT, TURN

REASONS = ("slot", "KV", "budget", "turn")
"""No free slot (`max_num_seqs`); too few free KV blocks; no tokens left of the step's budget; or nobody is
admitted: the step preempted, a static batch is under way, or a prompt that must stay whole doesn't fit."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What of a scheduler's settings keeps requests waiting; `None` where it has no such limit."""

    max_num_seqs: int | None
    max_tokens_per_step: int | None
    is_static: bool = False

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Limits:
        """The limits in a resolved configuration."""
        scheduler = config["scheduler"]
        return cls(
            scheduler.get("max_num_seqs"), scheduler.get("max_tokens_per_step"), scheduler["type"] == "static"
        )

    def reason(
        self,
        *,
        code: int | None,
        num_waiting: int,
        num_running: int,
        num_tokens: int,
        has_preempted: bool,
    ) -> str | None:
        """A value of `REASONS`; `None` if nobody waits.

        `code` is the step's `waiting_for` (`core.layout`), where a run has it. Without it the reason follows
        from the step: all slots taken, the budget used up, or else KV blocks.
        """
        if num_waiting == 0 or code == NOBODY_WAITS:
            return None
        if code == SLOT:
            return "slot"
        if code == KV_BLOCKS:
            return "KV"
        if self.max_tokens_per_step is not None and num_tokens >= self.max_tokens_per_step:
            return "budget"
        if code == TURN or has_preempted or self.is_static:
            return "turn"
        if self.max_num_seqs is not None and num_running >= self.max_num_seqs:
            return "slot"
        return "KV"
