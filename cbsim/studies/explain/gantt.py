"""Gantt: what each request did in each step of a window: wait, compute its prompt, decode, wait again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pandas as pd

from cbsim.studies.explain.batch_step import BatchStep

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
