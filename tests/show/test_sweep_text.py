"""What is said of a sweep: its best point, and which others can't be told from it."""

from __future__ import annotations

import re
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
            "num_finished": 1000,
            "slo_attainment": 1.0,
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
        "Met by all 3 settings: "
        "`max_tokens_per_step` 1024 has the highest goodput, 9.00 requests/s within TTFT ≤ 2 s; "
        f"`max_tokens_per_step` 512 follows with 8.00. {CHANCE}"
    )


@pytest.mark.parametrize(("makespan_s", "second", "is_same"), [(100.0, 9.96, True), (100.0, 9.94, False)])
def test_a_lead_of_half_a_percent_is_none(makespan_s: float, second: float, is_same: bool) -> None:
    told = sentence(sweep({512: [10.0], 1024: [second]}, makespan_s=makespan_s))
    assert (
        told.startswith("Met by both settings: Both points have the same goodput, 10.0 requests/s") is is_same
    )
    assert told.endswith(CHANCE)


def test_a_lead_of_one_request_is_none() -> None:
    """Of 20 s: 0.05 requests/s is one request, and 2.5 % of this goodput."""
    assert "Both points" in sentence(sweep({512: [2.0], 1024: [1.95]}, makespan_s=20.0))
    assert "has the highest" in sentence(sweep({512: [2.0], 1024: [1.94]}, makespan_s=20.0))


def test_points_that_are_the_same_are_told_apart_by_their_latency() -> None:
    goodput = {512: [10.0], 1024: [10.02], 2048: [10.01], 4096: [8.0]}
    assert sentence(sweep(goodput, {512: [4.0], 1024: [5.0], 2048: [3.9]})) == (
        "Met by all 4 settings: "
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
        "Met by both settings: "
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
        "Met by all 3 settings: "
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


PROMISED = {"ttft_s": {"each": 2.0, "p95": 1.5}, "tpot_s": {"p99": 0.06}}


def limited(points: dict[int, tuple[float, float, float]], slo: dict[str, Any] = PROMISED) -> Sweep:
    """A point a budget with its attainment, TTFT p95 and TPOT p99; goodput falls with the budget."""
    table = sweep({budget: [10.0 - budget / 1024] for budget in points}).table
    for column, figures in zip(
        ("slo_attainment", "ttft_s.p95", "tpot_s.p99"), zip(*points.values(), strict=True), strict=True
    ):
        table[column] = figures
    return Sweep.of(table, slo)


def test_the_best_is_one_that_meets_the_slo() -> None:
    told = sentence(limited({512: (1.0, 1.6, 0.05), 1024: (1.0, 1.4, 0.05), 2048: (1.0, 1.4, 0.07)}))
    assert told == (
        "Met by 1 of 3 settings, TTFT ≤ 2 s for 99% of requests, and TTFT p95 ≤ 1.5 s and TPOT p99 ≤ 60 ms: "
        f"`max_tokens_per_step` 1024 has a goodput of 9.00 requests/s within TTFT ≤ 2 s. {CHANCE}"
    )


def test_where_nothing_meets_it_the_nearest_is_named_with_what_it_misses() -> None:
    told = sentence(
        limited(
            {512: (1.0, 3.0, 0.05), 1024: (1.0, 1.4, 0.0636)},
            {"tpot_s": {"p99": 0.06}} | {"ttft_s": {"p95": 1.5}},
        )
    )
    assert told == (
        "Not met: no setting meets TPOT p99 ≤ 60 ms and TTFT p95 ≤ 1.5 s: the nearest is "
        "`max_tokens_per_step` 1024, which misses TPOT p99 by 6% (63.6 ms)."
    )
    most = sentence(limited({512: (0.83, 1.0, 0.01), 1024: (0.5, 1.0, 0.01)}, {"ttft_s": 2.0}))
    assert most.startswith(
        "Not met: no setting meets TTFT ≤ 2 s for 99% of requests: the nearest is `max_tokens_per_step` 512, "
        "which has 83.0% of requests within TTFT ≤ 2 s, not 99%. `max_tokens_per_step` 512 has the highest "
    )
    tied = sentence(limited({512: (0.5, 1.0, 0.01), 1024: (0.5, 1.0, 0.01)}, {"ttft_s": 2.0}))
    assert "the nearest are `max_tokens_per_step` 512 and `max_tokens_per_step` 1024, of which" in tied


def test_each_point_is_held_against_its_own_limit_where_limits_are_swept() -> None:
    table = sweep({512: [9.0]}).table.drop(columns=BUDGET)
    both = pd.concat([table, table], ignore_index=True)
    both.insert(0, "slo.ttft_s.p95", [1.0, 2.0])
    both["ttft_s.p95"] = 1.5
    told = sentence(Sweep.of(both, {"ttft_s": {"p95": 1.0}}))
    assert told.startswith("Met by 1 of 2 settings: `p95` 2 has a throughput of 100 ")


def test_without_an_slo_nothing_is_met_or_not() -> None:
    told = sentence(Sweep.of(sweep({512: [8.0], 1024: [9.0]}).table, {}))
    assert told.startswith("Both points have the same throughput, 100 output tokens/s")


def test_replicates_that_do_not_all_meet_it_are_counted() -> None:
    table = sweep({512: [8.0] * 3, 1024: [9.0] * 3}).table
    table["ttft_s.p95"] = [1.0, 1.0, 1.0, 1.0, 1.0, 1.9]
    told = sentence(Sweep.of(table, {"ttft_s": {"each": 2.0, "p95": 1.5}}))
    assert (
        "`max_tokens_per_step` 1024 has the highest goodput, 9.00 requests/s within TTFT ≤ 2 s "
        "(met in 2 of its 3 replicates)" in told
    )


figures = st.tuples(
    st.sampled_from([0.5, 0.98, 0.99, 1.0]), st.floats(0.5, 4.0), st.sampled_from([0.02, 0.06, 0.0603, 0.09])
)


@given(
    st.lists(figures, min_size=1, max_size=6),
    st.fixed_dictionaries(
        {},
        optional={
            "ttft_s": st.sampled_from([1.0, {"p95": 1.5}, {"each": 2.0, "p95": 1.0}]),
            "tpot_s": st.sampled_from([0.05, {"p99": 0.06}]),
        },
    ).filter(bool),
)
@settings(max_examples=150, deadline=None)
def test_the_sentence_says_what_the_table_does(
    drawn: list[tuple[float, float, float]], slo: dict[str, Any]
) -> None:
    """Of any sweep: the first word, every point named, and the distance of the nearest."""
    points = {2**place: row for place, row in enumerate(drawn)}
    told = sentence(limited(points, slo))
    has_own = any(not isinstance(limit, dict) or "each" in limit for limit in slo.values())

    def excess(row: tuple[float, float, float]) -> float:
        """The largest share by which a row of the table exceeds a limit; 0 where it exceeds none."""
        kept, ttft, tpot = row
        beyond = [(0.99 - kept) / 0.99 if has_own else 0.0]
        for name, statistic, figure in (("ttft_s", "p95", ttft), ("tpot_s", "p99", tpot)):
            limits = slo.get(name)
            if isinstance(limits, dict) and statistic in limits:
                beyond.append(figure / limits[statistic] - 1)
        return max(0.0, *beyond)

    missed = {budget: excess(row) for budget, row in points.items()}
    named = [int(number) for number in re.findall(r"`max_tokens_per_step` (\d+)", told)]
    meeting = {budget for budget, by in missed.items() if by == 0}
    if meeting:
        assert told.startswith("Met")
        assert {*named} <= meeting
        best = max(meeting, key=lambda budget: 10.0 - budget / 1024) if has_own else None
        assert not has_own or best in named or "points have the same" in told
    else:
        assert told.startswith("Not met: ")
        assert missed[named[0]] <= min(missed.values()) * 1.0051


def test_nothing_is_better_for_missing_the_slo() -> None:
    """A point of a higher goodput that misses a limit of the run is not even named."""
    told = sentence(limited({1: (1.0, 1.0, 0.07), 512: (1.0, 1.0, 0.05)}))
    assert "`max_tokens_per_step` 1 " not in told
