"""Gantt: what each request did in each step of a window: wait, compute its prompt, decode, wait again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pandas as pd

from cbsim.studies.explain.batch_step import BatchStep

KINDS = ("waiting", "prefill", "decode", "passed over", "preempted")
"""What a request does in a step: waiting for its first admission, running with a prompt chunk, with an output
token or with nothing in the batch, waiting after a preemption."""
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
        moments = _moments(events, replica)
        upcoming = next(moments, None)
        for step in steps:
            while upcoming is not None and upcoming.time_s <= step.scheduled_at_s:
                _apply(upcoming, doing, arrival_s)
                upcoming = next(moments, None)
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


class _Moment(NamedTuple):
    time_s: float
    request_id: str
    event: str


def _moments(events: pd.DataFrame, replica: int) -> Iterator[_Moment]:
    """The events of a replica that change what a request does, in order."""
    kept = events[(events["replica"] == replica).fillna(False) & events["event"].isin([*_AFTER, "finished"])]
    columns: Iterable[tuple[Any, ...]] = zip(kept["time_s"], kept["request_id"], kept["event"], strict=True)
    return (_Moment(float(time_s), str(name), str(event)) for time_s, name, event in columns)


def _apply(moment: _Moment, doing: dict[str, str], arrival_s: dict[str, float]) -> None:
    if moment.event == "arrived":
        arrival_s[moment.request_id] = moment.time_s
    if moment.event in _AFTER:
        doing[moment.request_id] = _AFTER[moment.event]
    else:
        doing.pop(moment.request_id, None)
