"""BatchStep: one step with its batch: who computed what, what was left over, and what changed with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from cbsim.core.layout import KV_BLOCKS, NOBODY_WAITS, SLOT, TURN
from cbsim.results.result import Result

DECISIONS = ("admitted", "resumed", "preempted", "finished")
Changes = Mapping[str, Sequence[tuple[str, int]]]
"""For each of `DECISIONS` its requests, with the tokens that were found in the prefix cache."""
_OF_ROWS = (
    *("replica", "step", "scheduled_at_s", "start_s", "duration_s"),
    *("num_running", "num_waiting", "kv_blocks_used", "kv_blocks_total"),
)
"""Columns of the table of steps that are fields of `BatchStep` too."""


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
    num_drafts: int = 0
    num_accepted: int = 0
    """Of the drafts that it verified."""


@dataclass(frozen=True, slots=True)
class BatchStep:
    """One step of one replica. Counts of queues and blocks are those right after scheduling."""

    replica: int
    step: int
    scheduled_at_s: float
    start_s: float
    duration_s: float
    num_running: int
    num_waiting: int
    kv_blocks_used: int
    kv_blocks_total: int
    shares: tuple[Share, ...]
    """In the order of the batch."""
    budget: int | None
    """Most tokens the step may compute; `None` if the scheduler has no such limit."""
    waits_for: str | None
    """What the head of the queue waits for, as `Limits.reason` tells it."""
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
        return len(self.shares) - len(self.chunks)

    @property
    def num_tokens(self) -> int:
        """Tokens computed."""
        return sum(share.num_tokens for share in self.shares)

    @property
    def budget_left(self) -> int | None:
        """Tokens the step could have computed besides."""
        return None if self.budget is None else self.budget - self.num_tokens

    @property
    def kv_blocks_free(self) -> int:
        """KV blocks that nobody holds."""
        return self.kv_blocks_total - self.kv_blocks_used

    def to_json(self) -> dict[str, Any]:
        """As plain data: chunks one by one, decodes by name."""

        def fields(of: object, *names: str) -> dict[str, Any]:
            return {name: getattr(of, name) for name in names}

        def found(pairs: Iterable[tuple[str, int]]) -> list[dict[str, Any]]:
            return [{"request_id": name, "num_cached_tokens": num_tokens} for name, num_tokens in pairs]

        return {
            **fields(self, "replica", "step", "start_s", "duration_s"),
            "decodes": [share.request_id for share in self.shares if not share.is_prefill],
            "chunks": [fields(chunk, "request_id", "num_tokens", "num_left") for chunk in self.chunks],
            **fields(self, "num_tokens", "budget_left", "num_running", "num_waiting", "waits_for"),
            **fields(self, "kv_blocks_used", "kv_blocks_free"),
            "admitted": found(self.admitted),
            "resumed": found(self.resumed),
            "preempted": list(self.preempted),
            "finished": list(self.finished),
        }


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

    def batch_step(self, row: Mapping[str, Any], shares: Iterable[Share], changes: Changes) -> BatchStep:
        """The step in a row of the table of steps (`results.tables.STEPS`), with its batch and decisions."""
        batch = tuple(shares)
        waits_for = self.reason(row, sum(share.num_tokens for share in batch))
        admitted, resumed, preempted, finished = (tuple(changes.get(what, ())) for what in DECISIONS)
        return BatchStep(
            **{name: row[name] for name in _OF_ROWS},
            shares=batch,
            budget=self.max_tokens_per_step,
            waits_for=waits_for,
            admitted=admitted,
            resumed=resumed,
            preempted=tuple(name for name, _ in preempted),
            finished=tuple(name for name, _ in finished),
        )

    def reason(self, row: Mapping[str, Any], num_tokens: int) -> str | None:
        """What the head of the queue waits for in a step of `num_tokens`; `None` if nobody waits.

        `slot`: all `max_num_seqs` are taken; `KV`: too few blocks are free; `budget`: the step's tokens are
        used up; `turn`: nobody is admitted, as the step preempted, a static batch is under way, or a prompt
        that must stay whole doesn't fit. Where `row` lacks `waiting_for` (a code of `core.layout`) the reason
        follows from the step: all slots taken, the budget used up, or else KV blocks.
        """
        code = row.get("waiting_for")
        if row["num_waiting"] == 0 or code == NOBODY_WAITS:
            return None
        if code in (SLOT, KV_BLOCKS):
            return "slot" if code == SLOT else "KV"
        if self.max_tokens_per_step is not None and num_tokens >= self.max_tokens_per_step:
            return "budget"
        if code == TURN or row["num_preempted"] > 0 or self.is_static:
            return "turn"
        return "slot" if self.max_num_seqs is not None and row["num_running"] >= self.max_num_seqs else "KV"


def steps_of(result: Result, replica: int) -> pd.DataFrame:
    """The steps of one replica, in order."""
    steps = result.steps
    return steps[steps["replica"] == replica].sort_values("step", ignore_index=True)
