"""Fair shares between users by counting what each was served."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator

from cbsim.schedulers.queues import Rank, WaitingQueue
from cbsim.workload.request import Request


class FairQueue(WaitingQueue):
    """The user who was served least goes first: the Virtual Token Counter of Sheng et al., OSDI'24, alg. 2.

    A counter holds the tokens served to a user: the prompt when it is admitted, each answer token when it is
    there, all at weight 1; what a preemption makes the engine compute again is not charged twice. A user who
    comes to have requests waiting is lifted to the least counter of those who have (if nobody has, to that of
    the user whose request left last), so that being idle earns no credit. Within a user, first come first
    served. Requests without a user are one user's.
    """

    def __init__(self) -> None:
        self.num_served: dict[str, int] = {}
        """Of each user: the counter, tokens."""
        self._waiting: dict[str, deque[Request]] = {}
        self._candidates: list[tuple[int, int, str]] = []
        """Heap of `(counter, first request's index, user)`; counters only grow, so old entries come up too
        early, never too late, and are put right then."""
        self._last_to_leave = ""

    @property
    def tells_apart(self) -> bool:
        """Whether there is more than one user."""
        return len(self.num_served) > 1

    def rank(self, request: Request) -> Rank:
        """`(counter of the user, place in order of arrival)`, as it stands now."""
        return (self.num_served.get(_user(request), 0), request.index)

    def push(self, request: Request) -> None:
        """To its place among the user's own by arrival; the user is lifted if none of them waited."""
        user = _user(request)
        queue = self._waiting.get(user)
        if queue is None:
            self._lift(user)
            queue = self._waiting[user] = deque()
        place = len(queue)
        while place > 0 and queue[place - 1].index > request.index:
            place -= 1
        queue.insert(place, request)
        if place == 0:
            heapq.heappush(self._candidates, (self.num_served[user], request.index, user))

    def head(self, now: float) -> Request | None:
        """The first request of the user served least; of equals, who came first."""
        while self._candidates:
            user = self._candidates[0][2]
            queue = self._waiting.get(user)
            if queue is None:
                heapq.heappop(self._candidates)
                continue
            current = (self.num_served[user], queue[0].index, user)
            if self._candidates[0] == current:
                return queue[0]
            heapq.heapreplace(self._candidates, current)
        return None

    def remove(self, request: Request) -> None:
        """Constant time for a user's first."""
        user = _user(request)
        queue = self._waiting[user]
        if queue[0] is request:
            queue.popleft()
        else:
            queue.remove(request)
        self._last_to_leave = user
        if not queue:
            del self._waiting[user]

    def served(self, request: Request, num_tokens: int) -> None:
        """The user's counter rises."""
        user = _user(request)
        self.num_served[user] = self.num_served.get(user, 0) + num_tokens

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._waiting.values())

    def __iter__(self) -> Iterator[Request]:
        """By rank as it stands now."""
        waiting = (request for queue in self._waiting.values() for request in queue)
        return iter(sorted(waiting, key=self.rank))

    def _lift(self, user: str) -> None:
        if self._waiting:
            least = min(self.num_served[other] for other in self._waiting)
        else:
            least = self.num_served.get(self._last_to_leave, 0)
        self.num_served[user] = max(self.num_served.get(user, 0), least)


def _user(request: Request) -> str:
    return request.user or ""
