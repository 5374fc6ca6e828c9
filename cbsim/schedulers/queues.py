"""The order in which waiting requests are served."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Iterator

from cbsim.workload.request import Request

Rank = tuple[float, ...]
"""Smaller is served first; ends with the place in order of arrival, so that no two requests are equal."""


class WaitingQueue(ABC):
    """Requests that wait for admission. Only the head is ever admitted."""

    @property
    def tells_apart(self) -> bool:
        """Whether, so far, anything but their arrival told requests apart."""
        return True

    @abstractmethod
    def rank(self, request: Request) -> Rank:
        """How urgent a request is, waiting or running."""

    @abstractmethod
    def push(self, request: Request) -> None:
        """A newcomer joins."""

    def put_back(self, request: Request) -> None:
        """A preempted request returns, to its place among the others."""
        self.push(request)

    @abstractmethod
    def head(self, now: float) -> Request | None:
        """Who is to be admitted next at the instant `now`; `None` if nobody waits."""

    @abstractmethod
    def remove(self, request: Request) -> None:
        """A request leaves, usually the head."""

    def is_aged(self, request: Request, now: float) -> bool:
        """Whether a request has waited so long that no other may be preferred to it."""
        return False

    def served(self, request: Request, num_tokens: int) -> None:  # noqa: B027
        """Tokens of a request have been served: for orders that depend on it."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __iter__(self) -> Iterator[Request]:
        """In the order of service, as far as it is known beforehand."""


class FcfsQueue(WaitingQueue):
    """First come, first served; a preempted request returns to its place, mostly the front."""

    def __init__(self) -> None:
        self._requests: deque[Request] = deque()

    def rank(self, request: Request) -> Rank:
        """The order of arrival."""
        return (request.index,)

    def push(self, request: Request) -> None:
        """To the tail."""
        self._requests.append(request)

    def put_back(self, request: Request) -> None:
        """Before all that arrived later: the front, unless others were preempted that came earlier still."""
        place = 0
        while place < len(self._requests) and self._requests[place].index < request.index:
            place += 1
        self._requests.insert(place, request)

    def head(self, now: float) -> Request | None:
        """The front."""
        return self._requests[0] if self._requests else None

    def remove(self, request: Request) -> None:
        """Constant time for the head."""
        if self._requests[0] is request:
            self._requests.popleft()
        else:
            self._requests.remove(request)

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)


class RankedQueue(WaitingQueue):
    """Smallest figure first, then in order of arrival, preempted requests included.

    The figure of a request must not change while it lives.
    """

    def __init__(self, figure: Callable[[Request], float]) -> None:
        self._figure = figure
        self._figures_seen: set[float] = set()
        """At most two of them."""
        self._entries: list[tuple[Rank, Request]] = []

    @property
    def tells_apart(self) -> bool:
        """Whether the figures differ."""
        return len(self._figures_seen) > 1

    def rank(self, request: Request) -> Rank:
        """`(figure, place in order of arrival)`."""
        return (self._figure(request), request.index)

    def push(self, request: Request) -> None:
        """To its place by rank."""
        rank = self.rank(request)
        if not self.tells_apart:
            self._figures_seen.add(rank[0])
        insort(self._entries, (rank, request), key=lambda entry: entry[0])

    def head(self, now: float) -> Request | None:
        """The smallest rank."""
        return self._entries[0][1] if self._entries else None

    def remove(self, request: Request) -> None:
        """By bisection."""
        del self._entries[bisect_left(self._entries, self.rank(request), key=lambda entry: entry[0])]

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Request]:
        return (request for _, request in self._entries)


def by_priority(request: Request) -> float:
    """The figure of `priority`: smaller is more important."""
    return request.priority


def by_deadline(request: Request) -> float:
    """The figure of `edf`: the instant of the deadline, seconds; without one, last."""
    return math.inf if request.deadline_s is None else request.arrival_s + request.deadline_s
