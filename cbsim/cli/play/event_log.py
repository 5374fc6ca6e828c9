"""EventLog: what happened to requests and settings, in order."""

from __future__ import annotations

from typing import NamedTuple

from cbsim.core import layout
from cbsim.core.stepping import DECISIONS, StepwiseWorld
from cbsim.workload.request import Request

_NAMES = {**DECISIONS, layout.FINISHED_NOW: "finished"}


class Event(NamedTuple):
    """Something that happened to a request."""

    time_s: float
    step: int
    """-1 outside any step."""
    what: str
    """`admitted`, `resumed`, `preempted`, `finished` or `rejected`, or `changed` for a setting."""
    request: Request | None
    detail: str


class EventLog:
    """Events that can be read while the run goes on."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.num_preemptions = 0
        self._num_read = 0

    def read(self, world: StepwiseWorld) -> None:
        """Take in what a world, or one that came in its place, has written down since the last call."""
        log = world.records.log
        num_rows = log.lengths.events
        for row in log.events[self._num_read : num_rows]:
            self.num_preemptions += row.event == layout.PREEMPTED_NOW
            if row.event in _NAMES:
                detail = f"{row.num_tokens} tokens cached" if row.num_tokens else ""
                request = world.requests[row.request]
                self.events.append(Event(row.time_s, row.step, _NAMES[row.event], request, detail))
        self._num_read = num_rows

    def rejected(self, request: Request, reason: str) -> None:
        """A request has come that could never be served."""
        self.events.append(Event(request.arrival_s, -1, "rejected", request, reason))

    def changed(self, now: float, detail: str) -> None:
        """A setting has changed, between two steps."""
        self.events.append(Event(now, -1, "changed", None, detail))
