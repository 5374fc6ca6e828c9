"""BatchStep: one step with its batch: who computed what, what was left over, and what changed with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Share:
    """One request's part of a step."""

    request_id: str
    num_tokens: int
    num_left: int
    """Tokens it had to compute before its next token could come out, these included; 1 for a decode."""
    is_prefill: bool
    num_blocks: int
    """KV blocks it held."""


@dataclass(frozen=True, slots=True)
class BatchStep:
    """One step of one replica. Counts of queues and blocks are those right after scheduling."""

    replica: int
    step: int
    scheduled_at_s: float
    start_s: float
    duration_s: float
    shares: tuple[Share, ...]
    """In the order of the batch."""
    budget: int | None
    """Most tokens the step may compute; `None` if the scheduler has no such limit."""
    num_running: int
    num_waiting: int
    waits_for: str | None
    """What the head of the queue waits for: a value of `cbsim.studies.explain.waiting.REASONS`."""
    kv_blocks_used: int
    kv_blocks_total: int
    admitted: tuple[tuple[str, int], ...]
    """Requests with the tokens found in the prefix cache."""
    resumed: tuple[tuple[str, int], ...]
    """Requests resumed after a preemption, with the tokens found in the prefix cache."""
    preempted: tuple[str, ...]
    finished: tuple[str, ...]
    """Requests that get their last token at the step's end."""

    @property
    def end_s(self) -> float:
        """When its tokens come out."""
        return self.start_s + self.duration_s

    @property
    def chunks(self) -> list[Share]:
        """The shares that compute prompts."""
        return [share for share in self.shares if share.is_prefill]

    @property
    def num_decodes(self) -> int:
        """Requests that compute one output token."""
        return sum(not share.is_prefill for share in self.shares)

    @property
    def num_tokens(self) -> int:
        """Tokens computed."""
        return sum(share.num_tokens for share in self.shares)

    @property
    def budget_left(self) -> int | None:
        """Tokens the step could have computed besides."""
        return None if self.budget is None else self.budget - self.num_tokens

    def to_json(self) -> dict[str, Any]:
        """As plain data: chunks one by one, decodes by name."""
        return {
            "replica": self.replica,
            "step": self.step,
            "start_s": self.start_s,
            "duration_s": self.duration_s,
            "decodes": [share.request_id for share in self.shares if not share.is_prefill],
            "chunks": [
                {"request_id": chunk.request_id, "num_tokens": chunk.num_tokens, "num_left": chunk.num_left}
                for chunk in self.chunks
            ],
            "num_tokens": self.num_tokens,
            "budget_left": self.budget_left,
            "num_running": self.num_running,
            "num_waiting": self.num_waiting,
            "waits_for": self.waits_for,
            "kv_blocks_used": self.kv_blocks_used,
            "kv_blocks_free": self.kv_blocks_total - self.kv_blocks_used,
            "admitted": [_found(*pair) for pair in self.admitted],
            "resumed": [_found(*pair) for pair in self.resumed],
            "preempted": list(self.preempted),
            "finished": list(self.finished),
        }


def _found(request_id: str, num_cached_tokens: int) -> dict[str, Any]:
    return {"request_id": request_id, "num_cached_tokens": num_cached_tokens}
