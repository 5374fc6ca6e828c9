"""Aging: whoever has waited too long goes first, whatever the order says."""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterator

from cbsim.schedulers.queues import Rank, WaitingQueue
from cbsim.workload.request import Request, RequestState


class AgingQueue(WaitingQueue):
    """Any queue, in which those that have waited longer than `aging_s` go before all others, by arrival.

    What counts is all the time a request has waited, before and after preemptions, without the time it ran;
    so a request that has once waited so long stays aged until it ends.
    """

    def __init__(self, order: WaitingQueue, aging_s: float) -> None:
        self._order = order
        self._aging_s = aging_s
        self._aged: list[Request] = []
        """Those waiting that are aged, by arrival."""
        self._due: list[tuple[float, int, Request]] = []
        """Heap of `(when a waiting request will be aged, its index, the request)`; those that have left since
        are dropped when their time comes."""

    @property
    def tells_apart(self) -> bool:
        """As without aging."""
        return self._order.tells_apart

    def rank(self, request: Request) -> Rank:
        """As without aging: it changes who goes first, not who is urgent."""
        return self._order.rank(request)

    def push(self, request: Request) -> None:
        """To its place, and its time of waiting begins or goes on."""
        self._order.push(request)
        self._watch(request)

    def put_back(self, request: Request) -> None:
        """See `push`."""
        self._order.put_back(request)
        self._watch(request)

    def head(self, now: float) -> Request | None:
        """The aged one that arrived first, else the head without aging."""
        while self._due and self._due[0][0] < now:
            due_s, _, request = heapq.heappop(self._due)
            still_waits = _waits(request) and due_s == self._due_s(request)
            if still_waits and self._place(request) is None:
                insort(self._aged, request, key=_index)
        return self._aged[0] if self._aged else self._order.head(now)

    def remove(self, request: Request) -> None:
        """A request leaves, usually the head."""
        self._order.remove(request)
        place = self._place(request)
        if place is not None:
            del self._aged[place]

    def is_aged(self, request: Request, now: float) -> bool:
        """Whether it has waited longer than `aging_s` in all."""
        if _waits(request):
            return self._due_s(request) < now
        return request.waited_s > self._aging_s

    def served(self, request: Request, num_tokens: int) -> None:
        """For the order below."""
        self._order.served(request, num_tokens)

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[Request]:
        """The aged ones, as found when the head was last asked for, then the others in their order."""
        yield from self._aged
        yield from (request for request in self._order if self._place(request) is None)

    def _watch(self, request: Request) -> None:
        heapq.heappush(self._due, (self._due_s(request), request.index, request))

    def _due_s(self, request: Request) -> float:
        """When a waiting request will have waited `aging_s` in all, seconds."""
        return request.waiting_since_s + (self._aging_s - request.waited_s)

    def _place(self, request: Request) -> int | None:
        place = bisect_left(self._aged, request.index, key=_index)
        is_there = place < len(self._aged) and self._aged[place] is request
        return place if is_there else None


def _index(request: Request) -> int:
    return request.index


def _waits(request: Request) -> bool:
    return request.state is RequestState.WAITING or request.state is RequestState.PREEMPTED
