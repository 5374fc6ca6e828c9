"""The orders of the waiting queue, each against requests that only this order serves so."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbsim.schedulers.lengths import LengthPredictor, answer_length, prompt_length
from cbsim.schedulers.queues import FcfsQueue, RankedQueue, WaitingQueue, by_deadline, by_priority
from cbsim.workload.request import Request
from tests.schedulers.cases import admission_order, preemptive, request, row, run

ROWS = [
    # One runs alone while the others arrive; they differ so that every order is another one.
    row("first", 0.0, 4, 4),
    row("a", 1.0, 4, 9, priority=2, deadline_s=9.5),
    row("b", 1.5, 9, 4, priority=1, deadline_s=90.0),
    row("c", 2.0, 6, 6, priority=1, deadline_s=9.0),
    row("d", 2.5, 7, 5, priority=3),
]


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ({"policy": "fcfs"}, "abcd"),
        ({"policy": "priority"}, "bcad"),
        ({"policy": "sjf"}, "bdca"),
        ({"policy": "sjf", "length_knowledge": "prompt_only"}, "acdb"),
        ({"policy": "sjf", "length_knowledge": "predicted", "prediction_error": 0.0}, "bdca"),
        # Deadlines count from the arrival: a's is at 10.5, c's at 11, b's at 91.5; d has none.
        ({"policy": "edf"}, "acbd"),
        # One user: nothing tells them apart.
        ({"policy": "fair"}, "abcd"),
    ],
)
@pytest.mark.parametrize("async_scheduling", [False, True])
def test_each_policy_admits_in_its_order(
    order: dict[str, Any], expected: str, async_scheduling: bool
) -> None:
    scheduler = preemptive(max_num_seqs=1, async_scheduling=async_scheduling, **order)
    assert admission_order(run(scheduler, ROWS)) == ["first", *expected]


def test_several_victims_return_in_order_of_arrival() -> None:
    queue = FcfsQueue()
    early, middle, late, newcomer = (request(i) for i in range(4))
    queue.push(newcomer)
    for victim in (middle, late, early):
        queue.put_back(victim)
    assert list(queue) == [early, middle, late, newcomer]


@pytest.mark.parametrize("figure", [by_priority, by_deadline, answer_length, prompt_length])
@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 4)), max_size=30), st.randoms())
def test_a_ranked_queue_is_a_sorted_list(figure: Any, script: list[tuple[bool, int]], chance: Any) -> None:
    queue: WaitingQueue = RankedQueue(figure)
    naive: list[Request] = []
    for index, (leaves, number) in enumerate(script):
        if leaves and naive:
            gone = chance.choice(naive)
            naive.remove(gone)
            queue.remove(gone)
        made = Request(f"r{index}", 0.0, number, 5 - number, priority=number % 3, deadline_s=float(number))
        made.index = index
        naive.append(made)
        queue.push(made)
        naive.sort(key=lambda r: (figure(r), r.index))
        assert list(queue) == naive
        assert queue.head(0.0) is naive[0]
        assert len(queue) == len(naive)


def test_predictions_have_the_relative_error_asked_for() -> None:
    predict = LengthPredictor(0.5, seed=3)
    logs = [math.log(predict(request(i)) / 8) for i in range(1500)]
    # Standard errors: 0.5 / sqrt(1500) = 0.013 of the mean, 0.5 / sqrt(3000) = 0.009 of sigma; 4 of them.
    assert abs(np.mean(logs)) < 0.052
    assert abs(np.std(logs) - 0.5) < 0.037


def test_a_prediction_depends_on_seed_and_id_alone() -> None:
    once = LengthPredictor(0.5, seed=3)
    [once(request(i)) for i in range(5)]
    assert once(request(7)) == LengthPredictor(0.5, seed=3)(request(7))
    assert once(request(7)) != LengthPredictor(0.5, seed=4)(request(7))
    assert once(request(7)) != once(request(8))


def test_a_policy_with_nothing_to_go_by_says_so() -> None:
    alike = [row("a", 0.0, 4, 2), row("b", 0.0, 8, 2)]
    for policy in ("priority", "edf", "fair", "sjf"):
        scheduler = preemptive(policy=policy)
        run(scheduler, alike)
        assert scheduler.notes() == [
            f"policy: {policy} found nothing that tells requests apart: they were served in order of arrival"
        ]
    scheduler = preemptive(policy="sjf", length_knowledge="prompt_only", aging_s=1.0)
    run(scheduler, alike)
    assert scheduler.notes() == []
