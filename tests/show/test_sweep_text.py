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


def named_in(told: str) -> list[int]:
    """The budgets that a sentence names, where several stand behind one key too."""
    lists = re.findall(r"`max_tokens_per_step` (\d+(?:, \d+)*(?: and \d+(?! more))?)", told)
    return [int(number) for each in lists for number in re.findall(r"\d+", each)]


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
        told.startswith("Met by both settings: both points have the same goodput, 10.0 requests/s") is is_same
    )
    assert told.endswith(CHANCE)


def test_a_lead_of_one_request_is_none() -> None:
    """Of 20 s: 0.05 requests/s is one request, and 2.5 % of this goodput."""
    assert "both points" in sentence(sweep({512: [2.0], 1024: [1.95]}, makespan_s=20.0))
    assert "has the highest" in sentence(sweep({512: [2.0], 1024: [1.94]}, makespan_s=20.0))


def test_points_that_are_the_same_are_told_apart_by_their_latency() -> None:
    goodput = {512: [10.0], 1024: [10.02], 2048: [10.01], 4096: [8.0]}
    assert sentence(sweep(goodput, {512: [4.0], 1024: [5.0], 2048: [3.9]})) == (
        "Met by all 4 settings: "
        "`max_tokens_per_step` 2048, 512 and 1024 share the "
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
        "`max_tokens_per_step` 512 and 1024 share the highest goodput, 9.3 ± 1.9 "
        "requests/s within TTFT ≤ 2 s, as far as these replicates can tell. Of the two, "
        "`max_tokens_per_step` 512 has the shortest p99 E2E, 2.10 ± 0.25 s; "
        "`max_tokens_per_step` 1024 follows with 4.10 ± 0.25 s."
    )


def test_resamples_of_a_trace_leave_more_open() -> None:
    table = sweep({512: [8.0, 8.4, 8.5], 1024: [9.0, 9.0, 9.5]}).table
    assert "clear of every other" in sentence(Sweep.of(table, SLO))
    assert "as far as these replicates" in sentence(
        Sweep.of(table, SLO, {"cost_model": {"uncertainty": True}})
    )


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
    assert "the nearest are `max_tokens_per_step` 512 and 1024, of which" in tied


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
@settings(max_examples=60, deadline=None)
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
    named = named_in(told)
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


T_95 = {2: 12.706, 3: 4.303}
"""Student's t of 95 % by the number of replicates, from a table."""
goodputs = st.sampled_from([8.0, 8.02, 8.4, 9.0])


@given(
    st.integers(2, 3).flatmap(
        lambda number: st.lists(st.lists(goodputs, min_size=number, max_size=number), min_size=2, max_size=4)
    )
)
@settings(max_examples=100, deadline=None)
def test_replicates_lead_share_or_say_too_little(drawn: list[list[float]]) -> None:
    """Of any sweep with replicates: who leads, who can't be told from it, and no interval of two."""
    points, num_runs = {2**place: runs for place, runs in enumerate(drawn)}, len(drawn[0])
    told = sentence(sweep(points))
    mean = {budget: sum(runs) / num_runs for budget, runs in points.items()}
    best = max(mean, key=lambda budget: mean[budget])
    varies = any(len({*runs}) > 1 for runs in drawn)

    def is_near(budget: int) -> bool:
        """Whether the best one's lead is within 0.5 %, within a request, or within chance."""
        pairs = [one - other for one, other in zip(points[best], points[budget], strict=True)]
        lead = sum(pairs) / num_runs
        deviation = (sum((pair - lead) ** 2 for pair in pairs) / (num_runs - 1)) ** 0.5
        chance = T_95[num_runs] * deviation / num_runs**0.5 if varies else 0.0
        return lead <= max(0.005 * mean[best], 0.01 * (1 + 1e-9), chance + 1e-9)

    near = {budget for budget in points if budget != best and is_near(budget)}
    shares = "share the highest" in told or "have the same" in told or "points have" in told
    assert shares == bool(near)
    assert best in named_in(told) or len(near) + 1 == len(points)
    assert shares or ("clear of every other point" in told) == varies
    assert ("Two replicates say little" in told) == (varies and num_runs == 2)
    assert "±" not in told or num_runs > 2


def test_what_else_may_be_asked_and_how_sure_it_is() -> None:
    """Where several meet the SLO at one rate; not where the rate is swept, clients wait, or one meets it."""
    table = sweep({512: [8.0], 1024: [9.0]}).table
    open_loop, closed = {"workload": {"type": "trace"}}, {"workload": {"concurrency": 4}}
    elsewhere = "That is at this workload's rate; which of them can take the most, `cbsim capacity` finds."
    assert sentence(Sweep.of(table, SLO, open_loop)).endswith(f"{CHANCE} {elsewhere}")
    assert "cbsim capacity" not in sentence(Sweep.of(table, SLO, closed))
    assert "cbsim capacity" not in sentence(Sweep.of(table, {}, open_loop))
    assert "cbsim capacity" not in sentence(Sweep.of(table.assign(slo_attainment=[1.0, 0.5]), SLO, open_loop))
    at_rates = table.rename(columns={BUDGET: "workload.rate_scale"})
    assert "cbsim capacity" not in sentence(Sweep.of(at_rates, SLO, open_loop))
    notes = [f"x; step times are {basis}: within {pct}% in 9 of 10 cases (y)" for basis, pct in BASES]
    assert sentence(Sweep.of(table.assign(notes=notes), SLO)).endswith(
        "Step times are measured for max_tokens_per_step 512 (within 5.7% in 9 of 10 cases) and estimated "
        "for max_tokens_per_step 1024 (within 50% in 9 of 10 cases)."
    )
    assert sentence(Sweep.of(table.assign(notes=notes[0]), SLO)).endswith(
        "Step times are measured (within 5.7% in 9 of 10 cases)."
    )


BASES = (("measured", "5.7"), ("estimated", "50"))


def test_a_lead_by_a_hair_is_called_one() -> None:
    told = sentence(sweep({512: [9.0], 1024: [9.1]}))
    assert "512 follows with 9.00, 1.1% behind, which other requests may turn." in told
    assert "behind" not in sentence(sweep({512: [8.8], 1024: [9.1]}))


def test_settings_compare_within_one_traffic() -> None:
    rate = "workload.arrivals.rate_per_s"
    low, high = (
        sweep({512: first, 1024: second}).table for first, second in (([8.0], [9.0]), ([20.0], [11.0]))
    )
    high = high.assign(**{"ttft_s.p99": [3.0, 3.0], "slo_attainment": [0.5, 0.4]})
    both = pd.concat([low.assign(**{rate: 10.0}), high.assign(**{rate: 30.0})], ignore_index=True)
    both = both[[rate, *low.columns]]
    assert sentence(Sweep.of(both, SLO)) == (
        "Met for 1 of 2 kinds of traffic. Settings compare within one traffic; the highest goodput, "
        "requests/s within TTFT ≤ 2 s: `rate_per_s` 10: `max_tokens_per_step` 1024, 9.00, met by 2 of 2; "
        "`rate_per_s` 30: `max_tokens_per_step` 512, 20.0, met by 0 of 2. Each point ran once."
    )
    alone = both[both[BUDGET] == 512].drop(columns=BUDGET)
    assert "they differ in their traffic, so that none is the better setting" in sentence(
        Sweep.of(alone, SLO)
    )
