"""The waiting queue: in the order of a rank, of users' shares, and with aging before either."""

from __future__ import annotations

from math import inf
from typing import Any

from cbsim.core.heap import put, take_out
from cbsim.core.layout import EDF, FAIR, NOBODY, PREEMPTED, PRIORITY, SJF, WAITING


def rank_of(self: Any, request: Any) -> float:
    """How urgent a request is, waiting or running: smaller is served first, of equals the first to arrive."""
    policy = self.config.policy
    if policy == PRIORITY:
        return float(request.priority)
    if policy == SJF:
        return float(request.job_length)
    if policy == EDF:
        return float(request.arrival_s + request.deadline_s)
    if policy == FAIR:
        return float(self.users.num_served[request.user])
    return 0.0


def is_less_urgent(self: Any, request: Any, other: Any) -> bool:
    """Whether a request comes after another by rank, then by arrival."""
    rank, other_rank = rank_of(self, request), rank_of(self, other)
    return rank > other_rank or (rank == other_rank and request.index > other.index)


def push(self: Any, request: Any) -> None:
    """A request begins to wait: a newcomer, or one that was preempted and goes to its place by rank."""
    own = self.own
    own.num_waiting += 1
    if self.config.policy == FAIR:
        push_by_user(self, request)
    else:
        own.head = put(self.waiting, own.head, request.index, rank_of(self, request))
    if self.config.aging_s < inf:
        own.due_head = put(self.due, own.due_head, request.index, due_s(self, request))


def head_of_queue(self: Any, now: float) -> int:
    """The index of the request to be admitted next, `NOBODY` if nobody waits.

    Those that have waited longer than `aging_s` in all, before and after preemptions, go first, in the order
    of arrival.
    """
    own = self.own
    if own.num_waiting == 0:
        return NOBODY
    if self.config.aging_s < inf:
        aged = first_aged(self, now)
        if aged != NOBODY:
            return aged
    if self.config.policy == FAIR:
        return head_of_users(self)
    return int(own.head)


def leave_queue(self: Any, request: Any) -> None:
    """A waiting request leaves: usually the head, admitted; else one whose last token came out meanwhile."""
    own = self.own
    own.num_waiting -= 1
    if self.config.policy == FAIR:
        leave_users(self, request)
    else:
        own.head = take_out(self.waiting, own.head, request.index)
    if self.config.aging_s < inf:
        if self.due[request.index].is_in:
            own.due_head = take_out(self.due, own.due_head, request.index)
        else:
            own.aged_head = take_out(self.aged, own.aged_head, request.index)


def served(self: Any, request: Any, num_tokens: int) -> None:
    """Tokens of a request have been served: its prompt at its first admission, each token that came out."""
    if self.config.policy == FAIR:
        self.users.num_served[request.user] += num_tokens


# Aging


def due_s(self: Any, request: Any) -> float:
    """When a waiting request will have waited `aging_s` in all, seconds."""
    return float(request.waiting_since_s + (self.config.aging_s - request.waited_s))


def is_aged(self: Any, request: Any, now: float) -> bool:
    """Whether a request has waited so long that no other may be preferred to it."""
    if self.config.aging_s == inf:
        return False
    if request.state == WAITING or request.state == PREEMPTED:
        return due_s(self, request) < now
    return bool(request.waited_s > self.config.aging_s)


def first_aged(self: Any, now: float) -> int:
    """The aged request that arrived first, `NOBODY` if none is."""
    own = self.own
    while own.due_head != NOBODY and self.due[own.due_head].key < now:
        index = own.due_head
        own.due_head = take_out(self.due, own.due_head, index)
        own.aged_head = put(self.aged, own.aged_head, index, 0.0)
    return int(own.aged_head)


# Shares of users: the Virtual Token Counter of Sheng et al., OSDI'24, algorithm 2


def push_by_user(self: Any, request: Any) -> None:
    """To its place among its user's own; the user is lifted if none of them waited."""
    users, user = self.users, request.user
    if users.head[user] == NOBODY:
        lift(self, user)
        users.active[self.own.num_active_users] = user
        self.own.num_active_users += 1
    users.head[user] = put(self.waiting, users.head[user], request.index, 0.0)


def lift(self: Any, user: int) -> None:
    """Idleness earns no credit: the counter rises to the least of the users who have requests waiting.

    If nobody has, to that of the user whose request left the queue last.
    """
    users, own = self.users, self.own
    least = 0
    if own.num_active_users:
        least = users.num_served[users.active[0]]
        for place in range(1, own.num_active_users):
            least = min(least, users.num_served[users.active[place]])
    elif own.last_user != NOBODY:
        least = users.num_served[own.last_user]
    users.num_served[user] = max(users.num_served[user], least)


def head_of_users(self: Any) -> int:
    """The first request of the user who was served least; of equals, who came first."""
    users = self.users
    chosen = users.active[0]
    for place in range(1, self.own.num_active_users):
        user = users.active[place]
        served_here, least = users.num_served[user], users.num_served[chosen]
        if served_here < least or (served_here == least and users.head[user] < users.head[chosen]):
            chosen = user
    return int(users.head[chosen])


def leave_users(self: Any, request: Any) -> None:
    """A user whose last waiting request leaves is no longer among those who wait."""
    users, own, user = self.users, self.own, request.user
    users.head[user] = take_out(self.waiting, users.head[user], request.index)
    own.last_user = user
    if users.head[user] == NOBODY:
        place = 0
        while users.active[place] != user:
            place += 1
        own.num_active_users -= 1
        users.active[place] = users.active[own.num_active_users]
