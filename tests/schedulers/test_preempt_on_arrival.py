"""`preempt_on_arrival`: a newcomer takes the place of less urgent requests, once, and only if that helps."""

from __future__ import annotations

from typing import Any

import pytest

from tests.schedulers.cases import finish_times, preemptive, row, run

SLOT = [row("low", 0.0, 4, 6, priority=5), row("urgent", 2.5, 4, 2, priority=1)]


@pytest.mark.parametrize("preemption", ["recompute", "swap"])
def test_a_slot_is_taken(preemption: str) -> None:
    scheduler = preemptive(
        policy="priority",
        max_num_seqs=1,
        preempt_on_arrival=True,
        preemption=preemption,
    )
    simulation = run(scheduler, SLOT)
    evicting = simulation.rows[3]
    assert (evicting["preempted"], evicting["new"], evicting["start"]) == (["low"], ["urgent"], 3.0)
    assert [name for name, _, _ in evicting["sched"]] == ["urgent"]
    resumed = simulation.rows[5]
    assert resumed["sched"] == ([["low", 1, 6]] if preemption == "swap" else [["low", 7, 0]])


def test_without_it_the_newcomer_waits() -> None:
    simulation = run(preemptive(policy="priority", max_num_seqs=1), SLOT)
    assert finish_times(simulation) == {"low": 6.0, "urgent": 8.0}


@pytest.mark.parametrize(
    "order",
    [
        {"policy": "priority"},
        {"policy": "sjf"},
        {"policy": "sjf", "length_knowledge": "prompt_only"},
        {"policy": "edf"},
    ],
)
def test_each_lasting_order_decides_who_is_urgent(order: dict[str, Any]) -> None:
    rows = [
        row("old", 0.0, 6, 9, priority=5, deadline_s=100.0),
        row("less", 1.5, 8, 10, priority=6, deadline_s=200.0),
        row("more", 2.5, 4, 3, priority=1, deadline_s=10.0),
    ]
    simulation = run(preemptive(max_num_seqs=1, preempt_on_arrival=True, **order), rows)
    assert [(s["preempted"], s["new"]) for s in simulation.rows if s["preempted"]] == [(["old"], ["more"])]


def test_equals_do_not_evict_each_other() -> None:
    rows = [row("one", 0.0, 4, 6, priority=1), row("two", 2.5, 4, 6, priority=1)]
    simulation = run(preemptive(policy="priority", max_num_seqs=1, preempt_on_arrival=True), rows)
    assert not any(step["preempted"] for step in simulation.rows)


def test_blocks_are_taken_from_as_many_as_it_needs() -> None:
    """8 blocks: three requests hold 2 each, the newcomer needs 6; the two least important make room."""
    rows = [row(f"low{i}", 0.0, 6, 9, priority=5 + i) for i in range(3)]
    rows.append(row("urgent", 1.5, 22, 1, priority=1))
    simulation = run(preemptive(policy="priority", num_blocks=8, preempt_on_arrival=True), rows)
    evicting = next(step for step in simulation.rows if step["preempted"])
    assert (evicting["preempted"], evicting["new"]) == (["low2", "low1"], ["urgent"])
    # low0 keeps its place in the step; those evicted gave theirs back.
    assert [name for name, _, _ in evicting["sched"]] == ["low0", "urgent"]


def test_nothing_is_evicted_in_vain() -> None:
    """Even with low's blocks the newcomer would not fit beside the more important one."""
    rows = [
        row("top", 0.0, 14, 2, priority=0),
        row("low", 0.0, 6, 8, priority=5),
        row("urgent", 0.5, 24, 1, priority=1),
    ]
    scheduler = preemptive(policy="priority", num_blocks=7, preempt_on_arrival=True)
    simulation = run(scheduler, rows)
    evicting = next(step for step in simulation.rows if step["preempted"])
    assert (evicting["start"], evicting["new"]) == (2.0, ["urgent"])


def test_shared_blocks_are_not_counted_as_gain() -> None:
    """low's only full block is top's too: evicting low would free one block, not two."""
    prompt = (("system", 4),)
    rows = [
        row("top", 0.0, 5, 12, priority=0, prompt=(*prompt, ("t", 1))),
        row("low", 1.0, 5, 12, priority=5, prompt=(*prompt, ("l", 1))),
        row("urgent", 1.5, 12, 1, priority=1),
    ]
    for prefix_caching, evicted in ((True, []), (False, ["low"])):
        scheduler = preemptive(
            policy="priority",
            num_blocks=5 - prefix_caching,
            preempt_on_arrival=True,
            prefix_caching=prefix_caching,
        )
        simulation = run(scheduler, rows)
        third = next(step for step in simulation.rows if step["start"] == 2.0)
        assert third["preempted"] == evicted


def test_who_has_run_evicts_nobody() -> None:
    """urgent loses its blocks to pressure (most_blocks) while low runs, and on its return waits its turn."""
    rows = [
        row("low", 0.0, 4, 16, priority=5),
        row("urgent", 0.5, 12, 9, priority=1),
    ]
    scheduler = preemptive(policy="priority", num_blocks=6, preempt_on_arrival=True, victim="most_blocks")
    simulation = run(scheduler, rows)
    preempted = [name for step in simulation.rows for name in step["preempted"]]
    assert preempted == ["urgent"]


def test_nobody_returns_in_the_step_that_evicted_it() -> None:
    """low would fit again beside the newcomer that only wanted its slot's worth of blocks."""
    rows = [row("big", 0.0, 20, 9, priority=5), row("urgent", 1.5, 10, 3, priority=1)]
    scheduler = preemptive(policy="priority", num_blocks=8, preempt_on_arrival=True, reserve_full_isl=False)
    simulation = run(scheduler, rows)
    evicting = next(step for step in simulation.rows if step["preempted"])
    assert evicting["preempted"] == ["big"]
    assert evicting["resumed"] == []
