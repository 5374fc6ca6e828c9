"""A step and its entries."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.oracle.blocks import Block
from tests.oracle.request import Request

Row = dict[str, Any]


@dataclass(eq=False)
class Entry:
    """A request's share of a step."""

    request: Request
    num_tokens: int
    before: int
    """Tokens computed or in flight before this step."""
    is_decode: bool
    emits: bool
    """Whether it is to give the request tokens (20, A6)."""
    num_preemptions: int
    """Of the request when this was decided: if it has more by the end, the step runs with a victim (A8)."""
    num_drafts: int = 0
    """`d`: drafts that it verifies (S2)."""
    is_padded: bool = False
    num_accepted: int | None = None
    """Known at the end; `None` without drafts, and where nothing came out."""
    num_emitted: int = 0
    """Tokens that came out; fewer than it was to give where they are dropped (P8, P11, S12)."""

    @property
    def is_victims(self) -> bool:
        return self.request.num_preemptions > self.num_preemptions


@dataclass(eq=False)
class Step:
    """A call, and the step that it made if it scheduled anybody."""

    scheduled_at: float
    row: Row
    entries: list[Entry] = field(default_factory=list)
    start: float | None = None
    """`None` for a call that scheduled nothing (A9)."""
    duration: float | None = None
    end: float | None = None
    """When its result is taken; of a call that scheduled nothing, when its news is."""
    bad_blocks: list[Block] = field(default_factory=list)
    """What reads within this step fail to bring (P8)."""
    carries_prefill: bool = False
    uses_drafts: bool = False
    received: list[Request] = field(default_factory=list)
    sent: list[Request] = field(default_factory=list)
    """Transfers found ended as it was launched (P5)."""

    @property
    def has_changed(self) -> bool:
        """Whether the call did or found anything."""
        told = self.row["preempted"] or self.row["load_started"]
        return bool(self.entries or told or self.received or self.sent)
