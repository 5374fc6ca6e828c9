"""What is said of a sweep: its best point, and which others can't be told from it."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from cbsim.show.sweep_text import Sweep, determined_note, replicate_table, sentence

BUDGET = "scheduler.max_tokens_per_step"
SLO = {"ttft_s": 2.0}


def sweep(goodput: dict[int, list[float]], e2e: dict[int, list[float]] | None = None, **more: Any) -> Sweep:
    """A point a budget, a run a seed; `e2e` are their p99 E2E, 3 s where nothing is said."""
    rows = [
        {
            BUDGET: budget,
            "seed": seed,
            "num_requests": 1000,
            "makespan_s": 100.0,
            "goodput_per_s": figure,
            "slo_attainment": 0.9,
            "output_token_throughput_per_s": 100.0,
            "ttft_s.p99": 1.0,
            "tpot_s.p99": 0.02,
            "itl_s.p99": 0.05,
            "e2e_s.p99": (e2e or {}).get(budget, [3.0] * len(figures))[seed],
            "point": f"{budget}-{seed}",
            "error": None,
        }
        | more
        for budget, figures in goodput.items()
        for seed, figure in enumerate(figures)
    ]
    table = pd.DataFrame(rows)
    return Sweep.of(table if max(map(len, goodput.values())) > 1 else table.drop(columns="seed"), SLO)


CHANCE = "Each point ran once, on the same requests."


def test_a_clear_best_without_replicates() -> None:
    assert sentence(sweep({512: [8.0], 1024: [9.0], 2048: [7.0]})) == (
        "`max_tokens_per_step` 1024 has the highest goodput, 9.00 requests/s within TTFT ≤ 2 s; "
        f"`max_tokens_per_step` 512 follows with 8.00. {CHANCE}"
    )


@pytest.mark.parametrize(("makespan_s", "second", "is_same"), [(100.0, 9.96, True), (100.0, 9.94, False)])
def test_a_lead_of_half_a_percent_is_none(makespan_s: float, second: float, is_same: bool) -> None:
    told = sentence(sweep({512: [10.0], 1024: [second]}, makespan_s=makespan_s))
    assert told.startswith("Both points have the same goodput, 10.0 requests/s within TTFT") is is_same
    assert told.endswith(CHANCE)


def test_a_lead_of_one_request_is_none() -> None:
    """Of 20 s: 0.05 requests/s is one request, and 2.5 % of this goodput."""
    assert "Both points" in sentence(sweep({512: [2.0], 1024: [1.95]}, makespan_s=20.0))
    assert "has the highest" in sentence(sweep({512: [2.0], 1024: [1.94]}, makespan_s=20.0))


def test_points_that_are_the_same_are_told_apart_by_their_latency() -> None:
    goodput = {512: [10.0], 1024: [10.02], 2048: [10.01], 4096: [8.0]}
    assert sentence(sweep(goodput, {512: [4.0], 1024: [5.0], 2048: [3.9]})) == (
        "`max_tokens_per_step` 1024, `max_tokens_per_step` 2048 and `max_tokens_per_step` 512 share the "
        "highest goodput, 10.0 requests/s within TTFT ≤ 2 s, to within 0.5%. Of these, "
        "`max_tokens_per_step` 2048 has the shortest p99 E2E, 3.90 s; "
        f"`max_tokens_per_step` 512 follows with 4.00 s. {CHANCE}"
    )
    near = sentence(sweep(goodput, {512: [3.91], 1024: [5.0], 2048: [3.9]}))
    assert "512 follows with 3.91 s, which can't be told from it." in near
    assert "Nor can their p99 E2E tell them apart, 3.00 s." in sentence(sweep(goodput))


def test_replicates_say_what_is_clear_of_chance() -> None:
    clear = sweep({512: [8.0, 8.1, 8.2], 1024: [9.0, 9.1, 9.2]})
    assert sentence(clear) == (
        "`max_tokens_per_step` 1024 has the highest goodput, 9.10 ± 0.25 requests/s within TTFT ≤ 2 s, clear "
        "of every other point."
    )


def test_differences_are_paired_by_seed() -> None:
    """The intervals of 512 and 1024 overlap, yet under each seed 1024 is ahead by as much."""
    assert "clear of every other" in sentence(sweep({512: [8.0, 9.0, 10.0], 1024: [8.5, 9.5, 10.5]}))
    crossing = sweep(
        {512: [8.0, 9.0, 10.0], 1024: [9.5, 8.5, 10.0], 2048: [1.0, 2.0, 1.0]},
        {512: [2.0, 2.1, 2.2], 1024: [4.0, 4.1, 4.2]},
    )
    assert sentence(crossing) == (
        "`max_tokens_per_step` 1024 and `max_tokens_per_step` 512 share the highest goodput, 9.3 ± 1.9 "
        "requests/s within TTFT ≤ 2 s, as far as these replicates can tell. Of the two, "
        "`max_tokens_per_step` 512 has the shortest p99 E2E, 2.10 ± 0.25 s; "
        "`max_tokens_per_step` 1024 follows with 4.10 ± 0.25 s."
    )


def test_resamples_of_a_trace_leave_more_open() -> None:
    table = sweep({512: [8.0, 8.4, 8.5], 1024: [9.0, 9.0, 9.5]}).table
    assert "clear of every other" in sentence(Sweep.of(table, SLO))
    assert "as far as these replicates" in sentence(Sweep.of(table, SLO, by_spread=True))


def test_replicates_that_are_all_the_same_are_none() -> None:
    same = sweep({512: [8.0] * 3, 1024: [9.0] * 3})
    assert sentence(same).endswith("Each point's replicates are identical.")
    (note,) = determined_note(same)
    assert note.startswith("replicates are identical and give no error bars: nothing in these runs is drawn")
    told = replicate_table(same).to_text()
    assert "replicates are identical" in told
    assert "±" not in told.partition("replicates are identical")[0]
    some = sweep({512: [8.0] * 3, 1024: [9.0, 9.1, 9.2]})
    assert determined_note(some)[0].startswith("replicates of 1 of 2 points are identical")
    assert determined_note(sweep({512: [8.0], 1024: [8.0]})) == []


def test_nothing_to_measure() -> None:
    table = sweep({512: [8.0]}).table.assign(goodput_per_s=None)
    assert sentence(Sweep.of(table, SLO)) == "No point has anything to measure."
