"""The orders of the waiting queue, each against requests that only this order serves so."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from cbsim.schedulers.preemptive import PreemptiveConfig, PreemptiveScheduler
from tests.schedulers.cases import admission_order, preemptive, row, run

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


def predictor(seed: int) -> Any:
    config = PreemptiveConfig(
        type="preemptive", policy="sjf", length_knowledge="predicted", prediction_error=0.5
    )
    predicted = PreemptiveScheduler.job_length(config, seed)
    assert predicted is not None
    return lambda index: predicted(f"r{index}", 8, 8)


def test_predictions_have_the_relative_error_asked_for() -> None:
    logs = [math.log(predictor(3)(index) / 8) for index in range(1500)]
    # Standard errors: 0.5 / sqrt(1500) = 0.013 of the mean, 0.5 / sqrt(3000) = 0.009 of sigma; 4 of them.
    assert abs(np.mean(logs)) < 0.052
    assert abs(np.std(logs) - 0.5) < 0.037


def test_a_prediction_depends_on_seed_and_id_alone() -> None:
    once = predictor(3)
    [once(index) for index in range(5)]
    assert once(7) == predictor(3)(7)
    assert once(7) != predictor(4)(7)
    assert once(7) != once(8)


def test_a_policy_with_nothing_to_go_by_says_so() -> None:
    alike = [row("a", 0.0, 4, 2), row("b", 0.0, 8, 2)]
    for policy in ("priority", "edf", "fair", "sjf"):
        scheduler = preemptive(policy=policy)
        assert run(scheduler, alike).notes() == [
            f"policy: {policy} found nothing that tells requests apart: they were served in order of arrival"
        ]
    scheduler = preemptive(policy="sjf", length_knowledge="prompt_only", aging_s=1.0)
    assert run(scheduler, alike).notes() == []
