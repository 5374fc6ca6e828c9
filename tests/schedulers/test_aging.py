"""Aging: nobody waits for ever, whatever is preferred to it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.schedulers.cases import admission_order, finish_times, preemptive, row, run


def flood(num_urgent: int) -> list[dict[str, Any]]:
    """One unimportant request, and urgent ones that keep the only slot busy: 4 s each, one every 4 s."""
    urgent = [row(f"u{i}", 4.0 * i, 4, 4, priority=0) for i in range(num_urgent)]
    return sorted([*urgent, row("low", 1.0, 4, 4, priority=9)], key=lambda r: r["arrival_s"])


@pytest.mark.parametrize("num_urgent", [10, 40])
def test_without_aging_the_unimportant_starve(num_urgent: int) -> None:
    simulation = run(preemptive(policy="priority", max_num_seqs=1), flood(num_urgent))
    assert finish_times(simulation)["low"] == 4.0 * num_urgent + 4.0


@pytest.mark.parametrize("num_urgent", [10, 40])
def test_with_aging_they_wait_only_so_long(num_urgent: int) -> None:
    """Aged at 11 s, low has the slot at 12 s, when the urgent one that runs has ended."""
    simulation = run(preemptive(policy="priority", max_num_seqs=1, aging_s=10.0), flood(num_urgent))
    assert finish_times(simulation)["low"] == 16.0


def test_the_instant_itself_is_not_longer() -> None:
    """Having waited exactly 11 s at 12 s, low is not aged yet."""
    simulation = run(preemptive(policy="priority", max_num_seqs=1, aging_s=11.0), flood(10))
    assert finish_times(simulation)["low"] == 20.0


ORDERS: list[dict[str, Any]] = [
    {"policy": "priority"},
    {"policy": "priority", "preempt_on_arrival": True},
    {"policy": "sjf"},
    {"policy": "sjf", "preempt_on_arrival": True},
    {"policy": "edf"},
    {"policy": "fair"},
]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("async_scheduling", [False, True])
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_nobody_is_overtaken_once_aged(order: dict[str, Any], async_scheduling: bool, data: Any) -> None:
    """Whoever has waited longer than `aging_s` since arrival goes before all who came later."""
    aging_s = data.draw(st.sampled_from([0.0, 3.0, 8.0]))
    gaps = data.draw(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=5, max_size=25))
    rows, now = [], 0.0
    for i, gap_s in enumerate(gaps):
        now += gap_s
        prompt, output = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 6))
        more = {"priority": i * 7 % 3, "user": "abc"[i * 5 % 3], "deadline_s": i * 11 % 17.0}
        rows.append(row(f"r{i}", now, prompt, output, **more))
    scheduler = preemptive(
        num_blocks=6, max_num_seqs=2, aging_s=aging_s, async_scheduling=async_scheduling, **order
    )
    simulation = run(scheduler, rows)
    arrival_s = {r["request_id"]: r["arrival_s"] for r in rows}
    place = {r["request_id"]: i for i, r in enumerate(rows)}
    admitted_at = {name: step["scheduled_at"] for step in simulation.rows for name in step["new"]}
    assert admitted_at.keys() == arrival_s.keys()
    for name, admitted in admitted_at.items():
        for other, other_admitted in admitted_at.items():
            is_aged_then = other_admitted - arrival_s[name] > aging_s
            if place[other] > place[name] and is_aged_then and other_admitted < admitted:
                raise AssertionError(f"{other} overtook {name}")


def test_only_waiting_counts_not_running() -> None:
    """low runs for 6 s, is preempted, and ages 10 s after that, not after its arrival."""
    urgent = [row(f"u{i}", 5.5 + 4.0 * i, 4, 4, priority=0) for i in range(10)]
    rows = [row("low", 0.0, 4, 20, priority=9), *urgent]
    scheduler = preemptive(policy="priority", max_num_seqs=1, preempt_on_arrival=True, aging_s=10.0)
    simulation = run(scheduler, rows)
    assert [s["start"] for s in simulation.rows if s["preempted"]] == [6.0]
    assert [s["start"] for s in simulation.rows if s["resumed"]] == [18.0]
    # Aged for good: it is not evicted again, and decodes the 14 tokens that are left.
    assert finish_times(simulation)["low"] == 18.0 + 14.0


def test_the_aged_are_not_preempted_for_the_others() -> None:
    """Blocks run out: low was admitted last and is the least important, but had waited longer than 5 s."""
    rows = [
        row("busy", 0.0, 13, 8, priority=0),
        row("low", 0.0, 8, 6, priority=9),
        row("urgent", 7.5, 8, 6, priority=0),
    ]
    for aging_s, expected in ((None, ["low"]), (5.0, ["urgent"])):
        scheduler = preemptive(num_blocks=5, max_num_seqs=2, policy="priority", aging_s=aging_s)
        simulation = run(scheduler, rows)
        assert [name for step in simulation.rows for name in step["preempted"]] == expected


def test_admission_order_with_everyone_aged() -> None:
    rows = [row(f"r{i}", 0.0, 4, 3, priority=5 - i) for i in range(5)]
    simulation = run(preemptive(policy="priority", max_num_seqs=1, aging_s=4.0), rows)
    # r4 and r3 go by priority; at 6 s all that wait are aged.
    assert admission_order(simulation) == ["r4", "r3", "r0", "r1", "r2"]
