"""The order in which waiting requests are served."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterator

from cbsim.request import Request


class WaitingQueue(ABC):
    """Requests that wait for admission. Only the head is ever admitted."""

    @abstractmethod
    def push(self, request: Request) -> None:
        """A newcomer joins."""

    @abstractmethod
    def put_back(self, request: Request) -> None:
        """A preempted request returns."""

    @abstractmethod
    def head(self, now: float) -> Request | None:
        """Who is to be admitted next at the instant `now`; `None` if nobody waits."""

    @abstractmethod
    def remove(self, request: Request) -> None:
        """A request leaves, usually the head."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __iter__(self) -> Iterator[Request]:
        """In the order of service, as far as it is known beforehand."""


class FcfsQueue(WaitingQueue):
    """First come, first served; a preempted request returns to the front."""

    def __init__(self) -> None:
        self._requests: deque[Request] = deque()

    def push(self, request: Request) -> None:
        """To the tail."""
        self._requests.append(request)

    def put_back(self, request: Request) -> None:
        """To the front, so that several victims end up in their old order."""
        self._requests.appendleft(request)

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


class PriorityQueue(WaitingQueue):
    """Smallest (priority, arrival) first, preempted requests included."""

    def __init__(self) -> None:
        self._entries: list[tuple[tuple[float, ...], Request]] = []

    def rank(self, request: Request) -> tuple[float, ...]:
        """Smaller is served first; ends with the place in order of arrival, so that no two are equal."""
        return (request.priority, request.index)

    def push(self, request: Request) -> None:
        """To its place by rank."""
        insort(self._entries, (self.rank(request), request), key=lambda entry: entry[0])

    def put_back(self, request: Request) -> None:
        """To its place by rank."""
        self.push(request)

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
