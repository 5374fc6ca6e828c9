"""Swapping to host memory: what moves, when, for how long, and what it is chosen over."""

from __future__ import annotations

from typing import Any

import pytest

from cbsim.base.units import GIB
from tests.schedulers.cases import BLOCK_BYTES, finish_times, preemptive, row, run

GIB_PER_BLOCK = BLOCK_BYTES / GIB

TWO = [row("a", 0.0, 8, 6), row("b", 0.0, 7, 4)]
"""With 4 blocks of 4 tokens both fit with their prompts; a's 9th token takes b's place. b holds 7 computed
tokens then, in 2 blocks, and has its first answer token. a ends with 13 tokens computed, in 4 blocks."""

SWAP: dict[str, Any] = {"num_blocks": 4, "preemption": "swap", "swap_latency_s": 0.125}


def test_a_swap_by_hand() -> None:
    """Moving 2 blocks takes 0.125 + 2 / 4 s each way; steps without a move take 1 s."""
    simulation = run(preemptive(**SWAP), TWO)
    assert [(step["start"], step["end"], step["sched"]) for step in simulation.rows] == [
        (0.0, 1.0, [["a", 8, 0], ["b", 7, 0]]),
        (1.0, 2.625, [["a", 1, 8]]),
        (2.625, 3.625, [["a", 1, 9]]),
        (3.625, 4.625, [["a", 1, 10]]),
        (4.625, 5.625, [["a", 1, 11]]),
        (5.625, 6.625, [["a", 1, 12]]),
        (6.625, 8.25, [["b", 1, 7]]),
        (8.25, 9.25, [["b", 1, 8]]),
        (9.25, 10.25, [["b", 1, 9]]),
    ]
    assert simulation.rows[1]["preempted"] == ["b"]
    assert (simulation.rows[6]["resumed"], simulation.rows[6]["cached"]) == (["b"], {})
    assert simulation.rows[6]["prefills"] == [False]
    assert simulation.own.num_tokens_recomputed == 0


def test_the_same_by_recompute() -> None:
    simulation = run(preemptive(num_blocks=4), TWO)
    assert simulation.rows[6]["sched"] == [["b", 8, 0]]
    assert finish_times(simulation) == {"a": 6.0, "b": 9.0}
    assert simulation.own.num_tokens_recomputed == 7


def test_the_victims_token_in_flight_is_saved() -> None:
    """Asynchronous: at the call that preempts b, its prompt is still being computed by the step in flight,
    behind which the copy is ordered. The step is not changed: it emits b's first token."""
    simulation = run(preemptive(**SWAP, async_scheduling=True), TWO)
    assert [(s["scheduled_at"], s["start"], s["end"], s["sched"]) for s in simulation.rows] == [
        (0.0, 0.0, 1.0, [["a", 8, 0], ["b", 7, 0]]),
        (0.0, 1.0, 2.625, [["a", 1, 8]]),
        (1.0, 2.625, 3.625, [["a", 1, 9]]),
        (2.625, 3.625, 4.625, [["a", 1, 10]]),
        (3.625, 4.625, 5.625, [["a", 1, 11]]),
        (4.625, 5.625, 6.625, [["a", 1, 12]]),
        (6.625, 6.625, 8.25, [["b", 1, 7]]),
        (6.625, 8.25, 9.25, [["b", 1, 8]]),
        (8.25, 9.25, 10.25, [["b", 1, 9]]),
    ]
    assert (simulation.rows[0]["emitted"], simulation.rows[1]["preempted"]) == (["a", "b"], ["b"])


def test_a_prompt_goes_on_where_it_was() -> None:
    """a decodes; b is preempted with 8 of its 16 prompt tokens computed and does the other 8 afterwards."""
    rows = [row("a", 0.0, 8, 7), row("b", 0.0, 16, 2)]
    scheduler = preemptive(
        num_blocks=5, chunk_size=4, max_tokens_per_step=8, preemption="swap", reserve_full_isl=False
    )
    simulation = run(scheduler, rows)
    chunks = [part for step in simulation.rows for part in step["sched"] if part[0] == "b"]
    assert chunks == [["b", 4, 0], ["b", 4, 4], ["b", 4, 8], ["b", 4, 12], ["b", 1, 16]]
    assert [step["preempted"] for step in simulation.rows if step["preempted"]] == [["b"]]
    prefills = [is_prefill for step in simulation.rows for is_prefill in step["prefills"]]
    assert prefills.count(True) == 2 + 4


def test_a_full_host_memory_falls_back_to_recompute() -> None:
    scheduler = preemptive(**SWAP, swap_space_gib=1 * GIB_PER_BLOCK)
    simulation = run(scheduler, TWO)
    assert simulation.rows[6]["sched"] == [["b", 8, 0]]
    assert finish_times(simulation) == {"a": 6.0, "b": 9.0}
    assert simulation.notes() == [
        "host memory was too full for 1 preempted requests, which were recomputed; 0 were swapped"
    ]


def test_a_given_bandwidth_replaces_the_host_links() -> None:
    """2 blocks of 2**20 bytes at 2.097152e-3 GB/s take 1 s, whatever the GPU's link would need."""
    scheduler = preemptive(**SWAP, swap_bandwidth_gb_s=2.097152e-3)
    simulation = run(scheduler, TWO)
    assert simulation.rows[1]["end"] == pytest.approx(1.0 + 1.0 + 1.125, rel=1e-12)


@pytest.mark.parametrize(
    ("block_s", "is_swapped"),
    # Recomputing 7 tokens takes 7 / 4 s, two moves of 2 blocks 4 x block_s: the prices cross at 7 / 16.
    [(0.25, True), (0.4375 - 2**-40, True), (0.4375, False), (0.5, False)],
)
def test_cheaper_flips_where_the_prices_cross(block_s: float, is_swapped: bool) -> None:
    scheduler = preemptive(num_blocks=4, preemption="cheaper", swap_latency_s=0.0, block_s=block_s)
    simulation = run(scheduler, TWO)
    assert simulation.own.num_moved_out == is_swapped
    assert simulation.rows[6]["sched"] == ([["b", 1, 7]] if is_swapped else [["b", 8, 0]])


def test_latency_counts_twice_for_cheaper() -> None:
    """4 x 0.25 + 2 x latency against 1.75: they cross at 0.375."""
    for latency_s, moved in ((0.374, 1), (0.375, 0)):
        scheduler = preemptive(num_blocks=4, preemption="cheaper", swap_latency_s=latency_s)
        assert run(scheduler, TWO).own.num_moved_out == moved


def test_kv_that_nobody_needs_again_is_not_moved() -> None:
    """b's last token is in flight when it becomes the victim: it finishes from the queue."""
    rows = [row("a", 0.0, 8, 3), row("b", 0.0, 7, 1)]
    simulation = run(preemptive(**SWAP, async_scheduling=True), rows)
    assert simulation.rows[1]["preempted"] == ["b"]
    assert simulation.rows[0]["finished"] == ["b"]
    assert simulation.rows[1]["end"] == 2.0


def test_several_moves_of_a_step_follow_one_another() -> None:
    """a needs c's block, then b one for itself: two moves of one block, each 0.5 + 1 / 4 s."""
    rows = [row("a", 0.0, 12, 5), row("b", 0.0, 4, 9), row("c", 0.0, 4, 9)]
    simulation = run(preemptive(num_blocks=5, preemption="swap", swap_latency_s=0.5), rows)
    second = simulation.rows[1]
    assert second["preempted"] == ["c", "b"]
    assert second["end"] - second["start"] == 1.0 + 2 * (0.5 + 0.25)


def test_a_swapped_prefix_is_shared_again() -> None:
    """While b is away, a overwrites all its blocks; b brings their content back, and c finds it."""
    prompt = (("system", 8),)
    rows = [row("a", 0.0, 8, 6), row("b", 0.0, 8, 4, prompt=prompt), row("c", 8.0, 8, 1, prompt=prompt)]
    simulation = run(preemptive(**SWAP, prefix_caching=True), rows)
    returned = next(step for step in simulation.rows if step["resumed"] == ["b"])
    assert (returned["start"], returned["cached"]) == (6.625, {})
    assert next(step["cached"] for step in simulation.rows if step["new"] == ["c"]) == {"c": 4}
