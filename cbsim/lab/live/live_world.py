"""LiveWorld: arrivals and steps on the wall clock, in the order of the simulated world."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator

from cbsim.lab.live.live_engine import LiveEngine
from cbsim.workload.request import Request
from cbsim.workload.request_source import Workload
from cbsim.workload.think import ThinkTimes

MAX_NAP_S = 0.05
Sleep = Callable[[float], None]


class LiveWorld:
    """Feeds a workload to one live replica until all is done.

    At the end of a step those that arrived meanwhile join the queue first, then the step takes effect, then
    the next is decided. Arrivals come `time_scale` times as fast as the workload says. In a closed loop
    the next request is sent when one has ended.
    """

    def __init__(
        self,
        workload: Workload,
        engine: LiveEngine,
        *,
        time_scale: float = 1.0,
        progress: Callable[[int, float], None] | None = None,
        sleep: Sleep = time.sleep,
    ) -> None:
        self.engine = engine
        self.progress = progress
        self._time_scale = time_scale
        self._sleep = sleep
        self._requests: Iterator[Request] = workload.requests()
        self._think_times = ThinkTimes(workload.config, workload.seed)
        self._is_closed_loop = workload.config.concurrency is not None
        self._ready = [0.0] * (workload.config.concurrency or 0)
        """Closed loop: when each client that has no request under way will send its next."""
        self._next: Request | None = next(self._requests, None)

    def run(self) -> None:
        """Run to the end."""
        engine = self.engine
        while True:
            now = engine.clock()
            self._arrive(now)
            engine.call(now)
            while engine.under_way:
                end_s = engine.compute()
                if not self._is_closed_loop:
                    self._arrive(end_s)
                for request in engine.end_step():
                    self._think(request, end_s)
                self._arrive(end_s)
                engine.call(end_s)
            if self._next is None and not engine.num_outstanding:
                return
            if not self._wait():
                return

    def _due_s(self) -> float | None:
        """When the next request is sent; `None` if there is none, or in a closed loop no client free."""
        if self._next is None or (self._is_closed_loop and not self._ready):
            return None
        return self._ready[0] if self._is_closed_loop else self._next.arrival_s / self._time_scale

    def _arrive(self, now: float) -> None:
        """Everybody who is due by now joins the queue."""
        while (due_s := self._due_s()) is not None and due_s <= now:
            request = self._next
            assert request is not None
            self._next = next(self._requests, None)
            if self._is_closed_loop:
                heapq.heappop(self._ready)
            request.arrival_s = due_s
            self.engine.book.add_prompt(request)
            if not self.engine.submit(request):
                self._think(request, due_s)
            if self.progress is not None:
                self.progress(request.index + 1, due_s)

    def _think(self, request: Request, end_s: float) -> None:
        """In a closed loop, the client whose request has ended will send its next."""
        if self._is_closed_loop:
            heapq.heappush(self._ready, end_s + self._think_times.after(request.index) / self._time_scale)

    def _wait(self) -> bool:
        """Sleep towards the next arrival or call of the scheduler; False if there will be none."""
        due = [at_s for at_s in (self.engine.wake_at_s(), self._due_s()) if at_s is not None]
        if not due:
            return False
        left_s = min(due) - self.engine.clock()
        if left_s > 0:
            self._sleep(min(left_s, MAX_NAP_S))
        return True
