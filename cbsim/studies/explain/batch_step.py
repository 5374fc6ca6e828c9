"""BatchStep: one step with its batch: who computed what, what was left over, and what changed with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

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


_AFTER = {
    "arrived": "waiting",
    "admitted": "passed over",
    "resumed": "passed over",
    "preempted": "preempted",
}
"""What a request does after an event, unless it computes something."""


class Bar(NamedTuple):
    """A request does the same from step `first` to `last`, both included, seconds `start_s` to `end_s`."""

    kind: str
    """waiting (for its first admission), preempted (and waiting again), or running: prefill (a prompt chunk),
    decode (an output token) or passed over (nothing in the batch)."""
    first: int
    last: int
    start_s: float
    end_s: float
    num_tokens: int
    """Of a prompt chunk, which is a bar of its own; else 0."""


@dataclass(slots=True)
class Row:
    """One request, its bars in order of time."""

    request_id: str
    bars: list[Bar] = field(default_factory=list)

    def extend(self, bar: Bar) -> None:
        """Add what it does next: longer of the same, or something new."""
        last = self.bars[-1] if self.bars else None
        if last is None or last.kind != bar.kind or bar.kind == "prefill":
            self.bars.append(bar if last is None else bar._replace(start_s=last.end_s))
        else:
            self.bars[-1] = last._replace(last=bar.last, end_s=bar.end_s)


@dataclass(frozen=True, slots=True)
class Gantt:
    """The steps of a window, and the requests that were there, in order of arrival."""

    replica: int
    steps: Sequence[BatchStep]
    rows: Sequence[Row]

    @classmethod
    def of(cls, replica: int, steps: Sequence[BatchStep], events: pd.DataFrame) -> Gantt:
        """From consecutive steps of a replica with their batches, and the run's events."""
        rows: dict[str, Row] = {}
        arrival_s: dict[str, float] = {}
        doing: dict[str, str] = {}
        is_told = events["event"].isin([*_AFTER, "finished"])
        told = events[(events["replica"] == replica).fillna(False) & is_told]
        done = 0
        for step in steps:
            upto = int(told["time_s"].searchsorted(step.scheduled_at_s, side="right"))
            columns = (told[name].iloc[done:upto] for name in ("time_s", "request_id", "event"))
            for time_s, name, event in zip(*columns, strict=True):
                if event == "arrived":
                    arrival_s[name] = float(time_s)
                if event == "finished":
                    doing.pop(name, None)
                else:
                    doing[name] = _AFTER[event]
            done = upto
            computes = {share.request_id: share for share in step.shares}
            for name in [*doing, *(computes.keys() - doing.keys())]:
                share = computes.get(name)
                kind = doing[name] if share is None else "prefill" if share.is_prefill else "decode"
                num_tokens = share.num_tokens if share and share.is_prefill else 0
                start_s = max(arrival_s[name], steps[0].start_s) if kind == "waiting" else step.start_s
                bar = Bar(kind, step.step, step.step, start_s, step.end_s, num_tokens)
                rows.setdefault(name, Row(name)).extend(bar)
            for name in step.finished:
                doing.pop(name, None)
        return cls(replica, steps, [rows[name] for name in arrival_s if name in rows])

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        requests = [
            {"request_id": row.request_id, "bars": [bar._asdict() for bar in row.bars]} for row in self.rows
        ]
        steps = [{"step": s.step, "start_s": s.start_s, "end_s": s.end_s} for s in self.steps]
        return {"replica": self.replica, "steps": steps, "requests": requests}
