"""The waiting queue against a list that is searched through: every order, with aging and without."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbsim.core.layout import EDF, FAIR, FCFS, NOBODY, PRIORITY, SJF
from cbsim.core.waiting_queue import head_of_queue, is_aged, leave_queue, push, served
from cbsim.workload.request import Request, RequestState
from tests.core.replica import known, new_replica, new_request

ORDERS = {
    FCFS: lambda request, counters: 0.0,
    PRIORITY: lambda request, counters: request.priority,
    SJF: lambda request, counters: request.num_output_tokens,
    EDF: lambda request, counters: request.arrival_s + request.deadline_s,
    FAIR: lambda request, counters: counters[request.user],
}


class NaiveQueue:
    """Waiting requests in a list; counters of users by VTC's algorithm 2."""

    def __init__(self, policy: int, aging_s: float) -> None:
        self.policy, self.aging_s = policy, aging_s
        self.waiting: list[Request] = []
        self.counters = {"a": 0, "b": 0, "c": 0}
        self.last_user: str | None = None

    def push(self, request: Request) -> None:
        users = {other.user for other in self.waiting}
        if request.user not in users and self.policy == FAIR:
            least = 0
            if users:
                least = min(self.counters[user] for user in users if user)
            elif self.last_user:
                least = self.counters[self.last_user]
            self.counters[request.user or ""] = max(self.counters[request.user or ""], least)
        self.waiting.append(request)

    def leave(self, request: Request) -> None:
        self.waiting.remove(request)
        self.last_user = request.user

    def is_aged(self, request: Request, now: float) -> bool:
        return request.waiting_since_s + (self.aging_s - request.waited_s) < now

    def head(self, now: float) -> int:
        def key(request: Request) -> Any:
            if self.is_aged(request, now):
                return (0, 0.0, request.index)
            return (1, ORDERS[self.policy](request, self.counters), request.index)

        return min(self.waiting, key=key).index if self.waiting else NOBODY


@pytest.mark.parametrize("aging_s", [inf, 0.0, 6.0])
@pytest.mark.parametrize("policy", ORDERS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    script=st.lists(
        st.tuples(st.sampled_from("nnnhxbbst"), st.integers(0, 50), st.sampled_from("abc")), max_size=60
    )
)
def test_the_head_is_the_one_that_a_search_finds(
    policy: int, aging_s: float, script: list[tuple[str, int, str]]
) -> None:
    """Newcomers; the head or another leaves; who has left comes back, or is served tokens; time goes by."""
    replica = new_replica(policy=policy, aging_s=aging_s)
    records, naive, now = replica.records, NaiveQueue(policy, aging_s), 0.0
    gone: list[Request] = []
    for index, (action, number, user) in enumerate(script):
        if action == "n":
            made = new_request(index, 4, 1 + number % 5, priority=number % 3, deadline_s=float(number % 4))
            made.user = user
            made.arrival_s = made.waiting_since_s = now
            known(replica, made)
            push(records, made)
            naive.push(made)
        elif action in "hx" and naive.waiting:
            left = naive.waiting[number % len(naive.waiting)]
            if action == "h":
                left = replica.world.requests[head_of_queue(records, now)]
            leave_queue(records, left)
            naive.leave(left)
            left.state = RequestState.RUNNING
            left.waited_s += now - left.waiting_since_s
            gone.append(left)
        elif action == "b" and gone:
            back = gone.pop(number % len(gone))
            back.state, back.waiting_since_s = RequestState.PREEMPTED, now
            push(records, back)
            naive.push(back)
        elif action == "s" and gone:
            one = gone[number % len(gone)]
            served(records, one, number)
            naive.counters[one.user or ""] += number if policy == FAIR else 0
        else:
            now += number / 4
        assert head_of_queue(records, now) == naive.head(now)
        assert records.own.num_waiting == len(naive.waiting)
        for request in naive.waiting:
            assert is_aged(records, request, now) == (aging_s < inf and naive.is_aged(request, now))
    assert [request.index for request in replica.waiting(now)][:1] == [naive.head(now)] * bool(naive.waiting)


def test_the_lift_of_users_by_hand() -> None:
    """Algorithm 2's cases: to the least counter of those waiting, else to that of who left last."""
    replica = new_replica(policy=FAIR)
    records = replica.records
    a, b, c, d = (known(replica, new_request(i, user=name)) for i, name in enumerate("abcb"))

    def counter(request: Request) -> int:
        return int(records.users[request.user_number].num_served)

    push(records, a)
    served(records, a, 50)
    push(records, b)
    assert (counter(a), counter(b)) == (50, 50)
    served(records, b, 20)
    push(records, c)
    assert counter(c) == 50
    for left in (a, c, b):
        leave_queue(records, left)
    assert head_of_queue(records, 0.0) == NOBODY
    served(records, c, 10)
    new = known(replica, new_request(9, user="new"))
    push(records, new)
    assert counter(new) == 70
    push(records, d)
    assert counter(d) == 70
    assert head_of_queue(records, 0.0) == d.index


def test_a_queue_of_aged_requests_is_first_come_first_served() -> None:
    replica = new_replica(policy=PRIORITY, aging_s=5.0)
    waiting = [known(replica, new_request(i, priority=9 - i)) for i in range(4)]
    for newcomer in waiting:
        push(replica.records, newcomer)
    assert replica.head(5.0) is waiting[3]
    assert replica.waiting(5.0) == waiting[::-1]
    assert replica.head(6.5) is waiting[0]
    assert replica.waiting(6.5) == [waiting[0], waiting[1], waiting[3], waiting[2]]
    leave_queue(replica.records, waiting[0])
    assert replica.head(6.5) is waiting[1]
    leave_queue(replica.records, waiting[1])
    assert replica.head(6.5) is waiting[3]


def test_a_stale_date_does_not_age_who_returned() -> None:
    """Admitted after 2 of 5 s and back at 10 s, it is aged from 13 s on."""
    replica = new_replica(aging_s=5.0)
    back, other = (known(replica, new_request(i)) for i in range(2))
    push(replica.records, back)
    leave_queue(replica.records, back)
    back.state, back.waited_s, back.waiting_since_s = RequestState.PREEMPTED, 2.0, 10.0
    push(replica.records, back)
    other.waiting_since_s = 12.0
    push(replica.records, other)
    assert not is_aged(replica.records, back, 13.0)
    assert is_aged(replica.records, back, 13.5)
    assert replica.head(12.5) is back
