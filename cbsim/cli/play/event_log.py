"""EventLog: what happened to requests, in order, for readers beside the run's record."""

from __future__ import annotations

from typing import NamedTuple

from cbsim.results.run_log import EMITTED, EVENTS, PREEMPTED, Recorder
from cbsim.workload.request import Request


class Event(NamedTuple):
    """Something that happened to a request."""

    time_s: float
    step: int
    """-1 outside any step."""
    what: str
    """One of `cbsim.results.run_log.EVENTS`, or `changed` for a setting."""
    request: Request | None
    detail: str


class EventLog(Recorder):
    """A `Recorder` that can be read while the run goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []
        self.num_preemptions = 0

    def rejected(self, request: Request, replica: int, reason: str) -> None:
        """See `Recorder.rejected`."""
        super().rejected(request, replica, reason)
        self.events.append(Event(request.arrival_s, -1, "rejected", request, reason))

    def event(
        self, code: int, request: Request, now: float, replica: int, step: int, num_tokens: int
    ) -> None:
        """See `Recorder.event`."""
        super().event(code, request, now, replica, step, num_tokens)
        self.num_preemptions += code == PREEMPTED
        if code != EMITTED:
            detail = f"{num_tokens} tokens cached" if num_tokens else ""
            self.events.append(Event(now, step, EVENTS[code], request, detail))

    def changed(self, now: float, detail: str) -> None:
        """A setting has changed, between two steps."""
        self.events.append(Event(now, -1, "changed", None, detail))
