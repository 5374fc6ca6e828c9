"""Victim rules: who loses its blocks when three requests run and one more block is wanted."""

from __future__ import annotations

from typing import Any

import pytest

from tests.schedulers.cases import preemptive, row, run

ROWS = [
    row("a", 0.0, 6, 9, priority=3),
    row("b", 0.0, 12, 9, priority=4),
    row("c", 0.0, 8, 9, priority=0),
]
"""With 8 blocks of 4: 2 + 3 + 2 after the first step, one is free. In the second step b (its 13th token)
takes it and c (its 9th) finds none; the 7th of a still fits into its second block."""


@pytest.mark.parametrize(
    ("rule", "victim"),
    [
        ({}, "c"),
        ({"victim": "last_admitted"}, "c"),
        ({"victim": "lowest_priority"}, "b"),
        ({"victim": "most_blocks"}, "b"),
        ({"victim": "least_progress"}, "a"),
        ({"policy": "sjf", "length_knowledge": "prompt_only"}, "b"),
    ],
)
@pytest.mark.parametrize("preemption", ["recompute", "swap"])
def test_each_rule_has_its_own_victim(rule: dict[str, Any], victim: str, preemption: str) -> None:
    scheduler = preemptive(num_blocks=8, preemption=preemption, **rule)
    simulation = run(scheduler, ROWS)
    first = next(step for step in simulation.rows if step["preempted"])
    assert first["preempted"] == [victim]
    assert first["start"] == 1.0


def test_priority_takes_the_least_important_where_no_rule_is_set() -> None:
    simulation = run(preemptive(num_blocks=8, policy="priority"), ROWS)
    # Admitted as c, a, b: in the second step c takes the free block, and b, lacking one, is its own victim.
    assert next(step["preempted"] for step in simulation.rows if step["preempted"]) == ["b"]


def test_a_victim_already_scheduled_leaves_the_step() -> None:
    simulation = run(preemptive(num_blocks=8, victim="most_blocks"), ROWS)
    second = simulation.rows[1]
    assert second["preempted"] == ["b"]
    assert [name for name, _, _ in second["sched"]] == ["a", "c"]
