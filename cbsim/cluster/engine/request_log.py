"""The requests of a replica, from their arrival to their row in the record."""

from __future__ import annotations

from collections.abc import Iterable

from cbsim.cluster.engine.recorder import FINISHED, Recorder
from cbsim.workload.request import Request


class RequestLog:
    """Knows who has not ended, and writes down who has, with the token times that the request carries."""

    def __init__(self, replica: int, recorder: Recorder) -> None:
        self._replica = replica
        self._recorder = recorder
        self._live: dict[int, Request] = {}

    def arrived(self, request: Request) -> None:
        """A request was accepted."""
        self._live[request.index] = request

    def live(self) -> Iterable[Request]:
        """Those that have not ended."""
        return self._live.values()

    def finished(self, requests: Iterable[Request], now: float, step: int) -> None:
        """These got their last token as a step ended."""
        for request in requests:
            del self._live[request.index]
            self._recorder.event(FINISHED, request, now, self._replica, step, 0)
            self._close(request)

    def close_all(self) -> None:
        """The run is over: write down those that have not ended."""
        for request in self._live.values():
            self._close(request)
        self._live.clear()

    def _close(self, request: Request) -> None:
        first_s, last_s = request.first_token_at_s, request.last_token_at_s
        if first_s is None or last_s is None:
            self._recorder.close(request, self._replica)
        else:
            self._recorder.close(request, self._replica, first_s, last_s, request.max_itl_s)
