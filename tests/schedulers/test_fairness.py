"""`fair`: what two users are served differs by no more than VTC's theorems allow."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.schedulers.cases import preemptive, row, run
from tests.simulation import Simulation

MAX_PROMPT, MAX_OUTPUT, NUM_SLOTS = 8, 8, 2
BOUND = 2 * max(MAX_PROMPT, NUM_SLOTS * MAX_OUTPUT)
"""2 U with U = max(w_p x longest prompt, w_q x most output tokens a running batch can still bring): Sheng
et al., OSDI'24, theorem 4.4, both weights 1."""


def user(
    name: str, count: int, arrival_s: float = 0.0, prompt: int = 8, output: int = 8
) -> list[dict[str, Any]]:
    return [row(f"{name}{i}", arrival_s, prompt, output, user=name) for i in range(count)]


def served(simulation: Simulation, name: str) -> list[tuple[float, int]]:
    """`(instant, tokens served to a user until then)`: prompts when admitted, answer tokens as they come."""
    events = []
    for step in simulation.rows:
        admitted = [new for new in step["new"] if new.startswith(name)]
        prompts = sum(simulation.seen.requests[new]["num_prompt_tokens"] for new in admitted)
        events.append((step["scheduled_at"], prompts))
        if step["start"] is not None:
            events.append((step["end"], sum(other.startswith(name) for other in step["emitted"])))
    return list(itertools.accumulate(sorted(events), lambda a, b: (b[0], a[1] + b[1])))


def at(history: list[tuple[float, int]], time_s: float) -> int:
    return max((total for instant, total in history if instant <= time_s), default=0)


def widest_gap(simulation: Simulation, start_s: float, end_s: float) -> int:
    """The largest difference of what a and b were served from `start_s` on; both have requests waiting."""
    a, b = served(simulation, "a"), served(simulation, "b")
    instants = [time_s for time_s, _ in a if start_s <= time_s <= end_s]
    return max(abs(at(a, t) - at(a, start_s) - at(b, t) + at(b, start_s)) for t in instants)


def last_admission(simulation: Simulation, name: str) -> float:
    return max(
        step["scheduled_at"] for step in simulation.rows for new in step["new"] if new.startswith(name)
    )


GREEDY_AND_MODEST = [*user("a", 40), *user("b", 12, prompt=4, output=3)]


@pytest.mark.parametrize("async_scheduling", [False, True])
@pytest.mark.parametrize("num_blocks", [100, 6])
def test_a_greedy_user_cannot_starve_a_modest_one(async_scheduling: bool, num_blocks: int) -> None:
    """6 blocks hold one and a half requests, so that they are preempted and recomputed, too."""
    scheduler = preemptive(
        policy="fair", max_num_seqs=NUM_SLOTS, async_scheduling=async_scheduling, num_blocks=num_blocks
    )
    simulation = run(scheduler, GREEDY_AND_MODEST)
    assert widest_gap(simulation, 0.0, last_admission(simulation, "b")) <= BOUND
    assert last_admission(simulation, "b") < last_admission(simulation, "a")


def test_first_come_first_served_breaks_the_bound() -> None:
    simulation = run(preemptive(policy="fcfs", max_num_seqs=NUM_SLOTS), GREEDY_AND_MODEST)
    assert widest_gap(simulation, 0.0, last_admission(simulation, "b")) > 10 * BOUND


def test_being_idle_earns_no_credit() -> None:
    """b comes after a was served alone for 100 s; from then on they share, and b doesn't catch up."""
    rows = [*user("a", 60), *user("b", 30, arrival_s=100.0)]
    simulation = run(preemptive(policy="fair", max_num_seqs=NUM_SLOTS), rows)
    assert at(served(simulation, "a"), 100.0) > 6 * BOUND
    assert widest_gap(simulation, 100.0, last_admission(simulation, "b")) <= BOUND


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, MAX_PROMPT), st.integers(1, MAX_OUTPUT)), min_size=15, max_size=25),
    st.lists(st.tuples(st.integers(1, MAX_PROMPT), st.integers(1, MAX_OUTPUT)), min_size=15, max_size=25),
    st.booleans(),
)
def test_the_bound_holds_for_any_two_backlogged_users(a: Any, b: Any, async_scheduling: bool) -> None:
    rows = [row(f"a{i}", 0.0, *lengths, user="a") for i, lengths in enumerate(a)]
    rows += [row(f"b{i}", 0.0, *lengths, user="b") for i, lengths in enumerate(b)]
    scheduler = preemptive(policy="fair", max_num_seqs=NUM_SLOTS, async_scheduling=async_scheduling)
    simulation = run(scheduler, rows)
    both_wait_until = min(last_admission(simulation, "a"), last_admission(simulation, "b"))
    assert widest_gap(simulation, 0.0, both_wait_until) <= BOUND


def test_recomputed_tokens_are_not_charged_again() -> None:
    scheduler = preemptive(policy="fair", max_num_seqs=2, num_blocks=6)
    simulation = run(scheduler, [*user("a", 4, output=9), *user("b", 4, output=9)])
    assert any(step["preempted"] for step in simulation.rows)
    # The counter of whoever came back to the queue after the other is lifted by at most a request.
    counters = [user.num_served for user in simulation.replica.records.users]
    assert len(counters) == 2
    assert all(4 * 17 <= num_served <= 5 * 17 for num_served in counters)
