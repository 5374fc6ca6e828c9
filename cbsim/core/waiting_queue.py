"""The waiting queue: in the order of a rank, of users' shares, and with aging before either.

The queue is a heap of nodes: request i has node i of `Replica.nodes`. With aging there are two more heaps:
node `num_nodes` + i stands in that of requests that will age, by when they will; node 2 `num_nodes` + i in
that of requests that have aged, by arrival.
"""

from __future__ import annotations

from math import inf
from typing import Any

from cbsim.base.binding import apart
from cbsim.core.heap import put, take_out
from cbsim.core.layout import EDF, ENTRY, FAIR, NOBODY, PREEMPTED, PRIORITY, SJF, WAITING


def rank_of(self: Any, request: Any) -> float:
    """How urgent a request is, waiting or running: the smallest is served first; ties go by arrival."""
    policy = self.config.policy
    if policy == PRIORITY:
        return float(request.priority)
    if policy == SJF:
        return float(request.job_length)
    if policy == EDF:
        return float(request.arrival_s + request.deadline_s)
    if policy == FAIR:
        return float(self.users[request.user_number].num_served)
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
        own.head = put(self.nodes, own.head, request.index, rank_of(self, request))
    if self.config.aging_s < inf:
        own.due_head = put(self.nodes, own.due_head, request.index + own.num_nodes, due_s(self, request))


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
    return own.head


def leave_queue(self: Any, request: Any) -> None:
    """A waiting request leaves: usually the head, admitted; else one whose last token came out meanwhile."""
    own = self.own
    own.num_waiting -= 1
    if self.config.policy == FAIR:
        leave_users(self, request)
    else:
        own.head = take_out(self.nodes, own.head, request.index)
    if self.config.aging_s < inf:
        due, aged = request.index + own.num_nodes, request.index + 2 * own.num_nodes
        if self.nodes[due].is_in:
            own.due_head = take_out(self.nodes, own.due_head, due)
        else:
            own.aged_head = take_out(self.nodes, own.aged_head, aged)


def owe_no_more(self: Any, request: Any) -> None:
    """A request leaves, or gets its first token here: if it had none, its prompt has been owed until now."""
    if request.stage == ENTRY and request.num_generated_tokens == 0:
        self.own.num_owed_tokens -= request.num_prompt_tokens


def served(self: Any, request: Any, num_tokens: int) -> None:
    """Under `fair`, tokens of a request have been served: its prompt at its first admission, each token that
    came out.
    """
    self.users[request.user_number].num_served += num_tokens


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


@apart
def first_aged(self: Any, now: float) -> int:
    """The aged request that arrived first, `NOBODY` if none is."""
    own = self.own
    while own.due_head != NOBODY and self.nodes[own.due_head].key < now:
        due = own.due_head
        own.due_head = take_out(self.nodes, due, due)
        own.aged_head = put(self.nodes, own.aged_head, due + own.num_nodes, 0.0)
    return NOBODY if own.aged_head == NOBODY else own.aged_head - 2 * own.num_nodes


# Shares of users: the Virtual Token Counter of Sheng et al., OSDI'24, algorithm 2


@apart
def push_by_user(self: Any, request: Any) -> None:
    """Queue a request among its user's own; if none of those waited, the user's counter is lifted."""
    user = self.users[request.user_number]
    if user.head == NOBODY:
        lift(self, user)
        self.users[self.own.num_active_users].active = request.user_number
        self.own.num_active_users += 1
    user.head = put(self.nodes, user.head, request.index, 0.0)


def lift(self: Any, user: Any) -> None:
    """Idleness earns no credit: a user's counter rises to the least counter of users with requests waiting.

    If nobody has any waiting, it rises to the counter of the user whose request left the queue last.
    """
    users, own = self.users, self.own
    least = 0
    if own.num_active_users:
        least = users[users[0].active].num_served
        for place in range(1, own.num_active_users):
            least = min(least, users[users[place].active].num_served)
    elif own.last_user != NOBODY:
        least = users[own.last_user].num_served
    user.num_served = max(user.num_served, least)


@apart
def head_of_users(self: Any) -> int:
    """The first request of the user who was served least; ties go to the first to arrive."""
    users = self.users
    chosen = users[0].active
    for place in range(1, self.own.num_active_users):
        number = users[place].active
        user, least = users[number], users[chosen]
        if user.num_served < least.num_served or (
            user.num_served == least.num_served and user.head < least.head
        ):
            chosen = number
    return users[chosen].head


@apart
def leave_users(self: Any, request: Any) -> None:
    """A user whose last waiting request leaves is no longer among those who wait."""
    users, own = self.users, self.own
    user = users[request.user_number]
    user.head = take_out(self.nodes, user.head, request.index)
    own.last_user = request.user_number
    if user.head == NOBODY:
        place = 0
        while users[place].active != request.user_number:
            place += 1
        own.num_active_users -= 1
        users[place].active = users[own.num_active_users].active
