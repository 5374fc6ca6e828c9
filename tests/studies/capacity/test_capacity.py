"""Capacities against queueing theory, and the answers where there is none."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from cbsim.base.errors import CbsimError, ConfigError
from cbsim.cli import main
from cbsim.results.slo import Slo
from cbsim.show.capacity_text import capacity_table, meaning, method, sentence
from cbsim.show.report_file import capacity_chapter
from cbsim.show.text import format_figure
from cbsim.studies.capacity import CapacityAnswer, Plan, capacity
from cbsim.studies.capacity.answer import load_capacity, save_capacity, to_json
from cbsim.studies.capacity.search import Bracket, SearchOutcome
from cbsim.studies.capacity.verdict import Evidence, judge_all
from cbsim.studies.intervals import Interval, bootstrap_interval, t_interval

SERVICE_S = 1.0
CONFIG: dict[str, Any] = {
    "name": "md1",
    # One request at a time, each of one step: service takes exactly a second.
    "workload": {
        "type": "synthetic",
        "num_requests": 1500,
        "arrivals": {"type": "poisson", "rate_per_s": 0.3},
        "prompt_tokens": {"type": "fixed", "value": 8},
        "output_tokens": {"type": "fixed", "value": 1},
    },
    "scheduler": {"type": "continuous", "max_num_seqs": 1},
    "cost_model": {"type": "constant", "step_s": SERVICE_S},
    "kv_cache": {"num_blocks": 100},
    "engine": "compiled",
    "slo": {"ttft_s": 5.0},
}


def shorter(num_requests: int) -> dict[str, Any]:
    """The same with fewer requests, for what needs no sharp figure."""
    return CONFIG | {"workload": CONFIG["workload"] | {"num_requests": num_requests}}


TRACE = "arrived_at,num_prefill_tokens,num_decode_tokens\n"


def waits_no_longer(rate_per_s: float, limit_s: float) -> float:
    """P(W <= t) in M/D/1 (Erlang, 1909; Tijms, A First Course in Stochastic Models, 2003, 9.6.2)."""
    load = rate_per_s * SERVICE_S
    total = 0.0
    for k in range(int(limit_s / SERVICE_S) + 1):
        x = rate_per_s * (k * SERVICE_S - limit_s)
        total += x**k / math.factorial(k) * math.exp(-x)
    return (1 - load) * total


def theory(share: float, limit_s: float) -> float:
    """The arrival rate at which that share waits no longer."""
    low, high = 0.01, 0.999
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if waits_no_longer(middle, limit_s) >= share else (low, middle)
    return low


@pytest.fixture(scope="module")
def answer() -> CapacityAnswer:
    twice = {"sweep": {"scheduler": [{"type": "continuous", "max_num_seqs": 1}] * 2}}
    return capacity(CONFIG | twice, Plan(share=0.9, tolerance=0.1))


def test_the_capacity_is_that_of_queueing_theory(answer: CapacityAnswer) -> None:
    expected = theory(0.9, 5.0 - SERVICE_S)
    (found, _) = answer.contenders
    assert found.verdict == "found"
    assert found.rate_per_s is not None
    assert found.rate_per_s.low <= expected <= found.rate_per_s.high
    assert found.rate_per_s.half_width < 0.15 * expected


def test_the_capacity_lies_on_the_curve(answer: CapacityAnswer) -> None:
    """Between two neighbours of the ladder, of which one holds."""
    (contender, _) = answer.contenders
    assert contender.rate_per_s is not None
    rate = contender.rate_per_s.estimate
    curve = answer.curve.groupby("rate_per_s")["slo_attainment"].mean()
    below, above = curve[curve.index <= rate], curve[curve.index > rate]
    assert (below >= 0.9).all()
    assert above.iloc[0] < 0.9
    assert above.index[0] / below.index[-1] == pytest.approx(answer.plan.growth)
    assert np.interp(rate, curve.index, curve) == pytest.approx(0.9)
    assert min(contender.own_rates_per_s) <= rate <= max(contender.own_rates_per_s)
    assert contender.rate_per_s.half_width == pytest.approx(t_interval(contender.own_rates_per_s).half_width)


def test_replicates_that_miss_much_outweigh_those_with_little_to_spare() -> None:
    # One replicate holds up to rung 4, the other up to 8; at 5 the curve has 0.8 on average.
    ladders = {0: (1.0, 1.0), 4: (1.0, 1.0), 5: (0.6, 1.0), 8: (0.4, 1.0), 9: (0.3, 0.5)}
    outcomes = [
        SearchOutcome(
            figures={rung: {"slo_attainment": met[place]} for rung, met in ladders.items()},
            alone={"slo_attainment": 1.0},
            bracket=Bracket(-9, 20, {rung: met[place] - 0.9 for rung, met in ladders.items()}),
            arrival_rate_per_s=1.0,
        )
        for place in range(2)
    ]
    evidence = Evidence(outcomes, Plan(tolerance=1.0), Slo.of({"ttft_s": 1.0}, share=0.9), None)
    assert evidence.capacity_per_s == pytest.approx(16 + 16 * 0.1 / 0.2)
    assert evidence.own_rates_per_s == pytest.approx((16 + 16 * 0.1 / 0.4, 256 + 256 * 0.1 / 0.5))


def test_contenders_that_cannot_be_told_apart_are_said_to_be(answer: CapacityAnswer) -> None:
    def told(ratio: Interval) -> str:
        first, second = answer.contenders
        return sentence(replace(answer, contenders=(first, replace(second, against_best=ratio))))

    elsewhere = " At a given rate below that others may be faster, which `cbsim sweep` tells."
    assert told(Interval(0.97, 0.91, 1.03)).endswith(
        f"0.970 ± 0.060 times as much, so that the two can't be told apart.{elsewhere}"
    )
    assert told(Interval(0.90, 0.84, 0.96)).endswith(f"0.900 ± 0.060 times as much.{elsewhere}")


def test_intervals_finer_than_the_ladder_are_doubted(answer: CapacityAnswer) -> None:
    first, second = answer.contenders
    fine = replace(answer, contenders=(first, replace(second, against_first=Interval(0.9, 0.899, 0.901))))
    assert any("try a smaller --tolerance" in note for note in meaning(fine))
    assert not any("--tolerance" in note for note in meaning(answer))


def test_equal_contenders_are_equal_under_common_random_numbers(answer: CapacityAnswer) -> None:
    first, second = answer.contenders
    assert first.against_first is None
    assert first.rate_per_s == second.rate_per_s
    assert second.against_first == second.against_best == (1.0, 1.0, 1.0)
    assert first.against_best is None


def test_every_replicate_has_run_at_every_rate_of_the_curve(answer: CapacityAnswer) -> None:
    counts = answer.curve.groupby(["scheduler", "rate_per_s"])["seed"].nunique()
    assert (counts == 5).all()
    assert answer.curve["rate_per_s"].min() > 0
    falling = answer.curve.groupby("rate_per_s")["slo_attainment"].mean().sort_index()
    assert falling.iloc[0] > 0.9 > falling.iloc[-1]


def test_an_answer_comes_back_from_its_folder(answer: CapacityAnswer, tmp_path: Path) -> None:
    save_capacity(answer, tmp_path / "out")
    again = load_capacity(tmp_path / "out")
    files = again.manifest["files"]
    assert to_json(again) == to_json(replace(answer, manifest={**answer.manifest, "files": files}))
    assert again.curve.equals(answer.curve)
    assert not list((tmp_path / "out").glob(".*"))
    again.curve.iloc[::-1].to_parquet(tmp_path / "out" / "curve.parquet")
    with pytest.raises(CbsimError, match=r"curve\.parquet: is not the file that was written here"):
        load_capacity(tmp_path / "out")
    told = tmp_path / "out" / "capacity.json"
    told.write_text(told.read_text().replace(answer.name, "another"))
    with pytest.raises(CbsimError, match=r"capacity\.json: was altered since it was written"):
        load_capacity(tmp_path / "out")
    told.write_text("{}")
    with pytest.raises(CbsimError, match="damaged capacity folder"):
        load_capacity(tmp_path / "out")


def test_an_slo_that_no_rate_meets() -> None:
    found = capacity(shorter(100) | {"slo": {"ttft_s": 0.5}}, Plan(num_replicates=2))
    (contender,) = found.contenders
    assert (contender.verdict, contender.rate_per_s) == ("never", None)
    assert sentence(found) == (
        "Not met at any rate: TTFT ≤ 500 ms for 99% of requests. "
        "Served one by one, it has 0.0% of requests within TTFT ≤ 500 ms, not 99%."
    )


def test_requests_too_few_for_the_share() -> None:
    (contender,) = capacity(shorter(50), Plan(num_replicates=2)).contenders
    assert contender.verdict == "too short"
    assert "50 requests are too few to tell 99.0%: 1,000 would do" in contender.reasons


def test_requests_too_few_to_form_a_queue() -> None:
    (contender,) = capacity(shorter(5), Plan(num_replicates=2)).contenders
    assert (contender.verdict, contender.rate_per_s) == ("too short", None)
    assert "even if all requests come at once" in contender.reasons[0]


def test_queues_that_still_grow_are_told() -> None:
    # A wait of 120 s is reached only by overload that lasts: a longer run would have a lower capacity.
    patient = shorter(600) | {"slo": {"ttft_s": 120.0}}
    (contender,) = capacity(patient, Plan(share=0.9, num_replicates=3, tolerance=0.1)).contenders
    assert contender.rate_per_s is not None
    assert contender.rate_per_s.estimate > 1 / SERVICE_S
    assert contender.verdict == "too short"
    assert "queues still grow" in contender.reasons[0]


def test_a_trace_is_resampled(tmp_path: Path) -> None:
    gaps = [0.2, 4.1, 1.3, 2.9, 0.7] * 60
    times = [sum(gaps[:place]) for place in range(len(gaps))]
    (tmp_path / "t.csv").write_text(TRACE + "".join(f"{time},8,1\n" for time in times))
    config = CONFIG | {"workload": {"type": "trace", "path": str(tmp_path / "t.csv")}}
    found = capacity(config, Plan(share=0.9, num_replicates=3, num_requests=600))
    assert found.resampled_from == 300
    assert found.curve["num_requests"].unique().tolist() == [600]
    (contender,) = found.contenders
    assert contender.rate_per_s is not None
    assert 0.5 < contender.rate_per_s.estimate < 1.5
    assert "3 resamples of the trace's 300 requests" in method(found)


def test_errors_of_the_cost_model_are_guesses_at_one_truth() -> None:
    """Each replicate is one: more of them leave a capacity as unsure as they are spread."""
    outcome = SearchOutcome(bracket=Bracket(0, 9, {0: 0.1, 4: -0.1}), arrival_rate_per_s=2.0)
    for is_uncertain, expected in ((False, t_interval), (True, bootstrap_interval)):
        evidence = Evidence([outcome], Plan(), Slo.of({"ttft_s": 1.0}), None, is_uncertain)
        assert evidence.interval([1.0, 2.0, 4.0]) == expected([1.0, 2.0, 4.0])


def test_mistakes_are_told_all_at_once() -> None:
    wrong = CONFIG | {"slo": {}, "stop_at_s": 3.0, "workload": CONFIG["workload"] | {"concurrency": 2}}
    with pytest.raises(ConfigError) as caught:
        capacity(wrong)
    assert caught.value.problems == (
        "slo: missing; capacity needs at least one limit, as in --set slo.ttft_s=2",
        "workload.concurrency: clients that wait for their answers have no rate to vary",
        "stop_at_s: capacity needs runs to their end; leave it out",
    )
    with pytest.raises(ConfigError) as caught:
        capacity(CONFIG | {"sweep": {"workload.rate_scale": [1.0, 2.0], "replicates": 2}})
    assert caught.value.problems == (
        "sweep: varies the seed; leave that to the replicates of capacity",
        "sweep: varies workload.rate_scale, which is what capacity finds",
    )
    with pytest.raises(ConfigError) as caught:
        Plan(share=1.0, num_replicates=1, tolerance=0.0)
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "share",
        "replicates",
        "tolerance",
    ]


def test_requests_at_one_instant_have_no_rate() -> None:
    at_once = CONFIG["workload"] | {"arrivals": {"type": "all_at_once"}, "num_requests": 3}
    with pytest.raises(CbsimError, match="all requests arrive at one instant"):
        capacity(CONFIG | {"workload": at_once})


def test_the_command_prints_the_answer_and_writes_the_folder(tmp_path: Path) -> None:
    (tmp_path / "md1.yaml").write_text(json.dumps(shorter(200)))
    arguments = ["--share", "0.9", "--replicates", "2", "--tolerance", "0.2", "--out", str(tmp_path / "out")]
    ran = CliRunner().invoke(main, ["capacity", str(tmp_path / "md1.yaml"), *arguments])
    assert ran.exit_code == 0
    first, second, *rounds = ran.stderr.splitlines()
    assert re.fullmatch(r"1 of 2 searches, about [\d.]+ m?s left", first)
    assert second == "2 of 2 searches"
    assert all(re.fullmatch(r"completing the curves, (\d) of \1", line) for line in rounds)
    told = r"Met up to [\d.]+ \([\d.]+ to [\d.]+\) requests/s by md1: TTFT ≤ 5 s for 90% of requests\. Two"
    assert re.match(told, ran.stdout)
    assert "±" not in ran.stdout, "two replicates make no interval"
    pictures = {"curve.png", "curve.svg", "capacity.png", "capacity.svg"}
    names = {"capacity.json", "curve.csv", "curve.parquet", "points", *pictures}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    again = load_capacity(tmp_path / "out")
    (contender,) = again.contenders
    assert again.name == "md1"
    assert contender.rate_per_s is not None
    seen = " to ".join(map(format_figure, sorted(contender.own_rates_per_s)))
    assert f"({seen}) requests/s by md1" in ran.stdout


def test_percentiles_of_the_run_are_limits_too(tmp_path: Path) -> None:
    """The 90th percentile passes the limit at the rate at which 90 % of requests wait no longer."""
    limited = capacity(shorter(500) | {"slo": {"ttft_s": {"p90": 5.0}}}, Plan(tolerance=0.2))
    (contender,) = limited.contenders
    assert contender.rate_per_s is not None
    assert contender.rate_per_s.low <= theory(0.9, 5.0 - SERVICE_S) <= contender.rate_per_s.high
    curve = limited.curve.groupby("rate_per_s")["ttft_s.p90"].mean()
    rate = contender.rate_per_s.estimate
    assert (curve[curve.index <= rate] <= 5.0).all()
    assert curve[curve.index > rate].iloc[0] > 5.0
    told = sentence(limited)
    assert re.fullmatch(r"Met up to [\d.]+ ± [\d.]+ requests/s by md1: TTFT p90 ≤ 5 s\.", told)
    save_capacity(limited, tmp_path)
    assert load_capacity(tmp_path).slo == limited.slo
    assert capacity_table(limited).header == ("", "capacity (req/s)", "unloaded", "verdict")


def test_all_conditions_must_hold_at_once() -> None:
    def rate(slo: dict[str, Any]) -> float:
        plan = Plan(share=0.9, num_replicates=2, tolerance=0.2)
        (found,) = capacity(shorter(300) | {"slo": slo}, plan).contenders
        assert found.rate_per_s is not None
        return found.rate_per_s.estimate

    alone = [rate({"ttft_s": 5.0}), rate({"e2e_s": {"mean": 2.0}}), rate({"ttft_s": {"max": 12.0}})]
    assert rate({"ttft_s": {"each": 5.0, "max": 12.0}, "e2e_s": {"mean": 2.0}}) == pytest.approx(
        min(alone), rel=0.02
    )


def test_no_rate_meets_a_percentile_that_one_request_alone_misses() -> None:
    found = capacity(shorter(100) | {"slo": {"ttft_s": {"p95": 0.8}}}, Plan(num_replicates=2))
    assert found.contenders[0].verdict == "never"
    assert sentence(found) == (
        "Not met at any rate: TTFT p95 ≤ 800 ms. Served one by one, it misses TTFT p95 by 25% (1.00 s)."
    )


BATCHES: dict[str, Any] = CONFIG | {
    "name": "batches",
    "workload": CONFIG["workload"] | {"num_requests": 200, "output_tokens": {"type": "fixed", "value": 20}},
    # A step takes 10 ms and 1 ms a request: 11 to 14 ms with 4 slots, to 42 ms with 32.
    "cost_model": {"type": "constant", "step_s": 0.01, "per_decode_s": 0.001},
    "kv_cache": {"num_blocks": 10_000},
    "slo": {"tpot_s": 0.025},
    "sweep": {"scheduler.max_num_seqs": [4, 32]},
}


def test_what_no_rate_breaks_is_unlimited_and_wins() -> None:
    found = capacity(BATCHES, Plan(share=0.9, num_replicates=2, tolerance=0.5))
    assert [each.verdict for each in found.contenders] == ["unlimited", "found"]
    told = sentence(found)
    assert told.startswith(
        "Met at any rate: max_num_seqs 4 is unlimited under this SLO, TPOT ≤ 25 ms for 90% of requests. "
        "max_num_seqs 32, the next, meets it up to "
    )
    assert capacity_table(found).rows[0][1] == "unlimited"
    _, curve = capacity_chapter(found).tables
    names = dict.fromkeys(row[0] for row in curve.table.rows)
    assert list(names) == ["max_num_seqs 4", "max_num_seqs 32"], "by the contenders, not by the alphabet"


def test_a_queue_breaks_what_it_is_part_of_and_few_requests_tell_nothing() -> None:
    """The same requests are too few where a longer wait counts, or where all of them run at once."""
    few = BATCHES | {"workload": BATCHES["workload"] | {"num_requests": 60}}
    for max_num_seqs, slo in ((4, {"ttft_s": 1e4}), (45, {"tpot_s": 1.0})):
        change = {"sweep": {"scheduler.max_num_seqs": [max_num_seqs]}, "slo": slo}
        (contender,) = capacity(few | change, Plan(num_replicates=2, tolerance=0.5)).contenders
        assert (contender.verdict, contender.rate_per_s) == ("too short", None)
        assert "too few of them to form a queue" in contender.reasons[0]


attainments = st.lists(st.sampled_from([0.2, 0.6, 0.89, 0.9, 0.95, 1.0]), min_size=6, max_size=6)


replicates_of_each = st.integers(2, 3).flatmap(
    lambda number: st.lists(st.lists(attainments, min_size=number, max_size=number), min_size=1, max_size=4)
)
T_95 = {2: 12.706, 3: 4.303}
"""Student's t of 95 % by the number of replicates, from a table."""


@given(replicates_of_each, st.booleans())
@settings(max_examples=150, deadline=None)
def test_the_sentence_says_what_the_curves_do(drawn: list[list[list[float]]], is_full: bool) -> None:
    """Of any capacity: the first word, who is named, up to which rate, what can't be told apart, how sure."""
    num_replicates = len(drawn[0])
    plan, slo = Plan(tolerance=1.0), Slo.of({"tpot_s": 1.0}, share=0.9)
    evidence, curves = [], []
    for replicates in drawn:
        falling = [sorted(curve, reverse=True) for curve in replicates]
        curves.append([sum(curve[rung] for curve in falling) / num_replicates for rung in range(6)])
        figures = [
            {
                rung: {
                    "slo_attainment": met,
                    "num_requests": 2000,
                    "in_service": 100 if is_full else 1500,
                    "num_finished": 2000,
                }
                for rung, met in enumerate(curve)
            }
            for curve in falling
        ]
        outcomes = [
            SearchOutcome(
                each,
                each[0],
                Bracket(0, 5, {rung: met["slo_attainment"] - 0.9 for rung, met in each.items()}),
                {},
                1.0,
            )
            for each in figures
        ]
        evidence.append(Evidence(outcomes, plan, slo, None))
    labels = [f"c{place}" for place in range(len(drawn))]
    found = judge_all(labels, [{} for _ in labels], evidence)
    note = "step times are %s: within 7% in 9 of 10 cases (kernels)"
    bases = ["measured" if place % 2 else "estimated" for place in range(len(drawn))]
    runs = pd.DataFrame(
        {"contender": labels, "rate_per_s": 1.0, "notes": [note.replace("%s", basis) for basis in bases]}
    )
    answer = CapacityAnswer("drawn", slo, plan, None, found, (), runs, {}, {})
    told = sentence(answer)
    assert all(f"{basis}" in told.rpartition("Step times are")[2] for basis in bases)
    unlimited = {
        label
        for label, replicates in zip(labels, drawn, strict=True)
        if is_full and all(min(curve) >= 0.9 for curve in replicates)
    }
    never = {label for label, curve in zip(labels, curves, strict=True) if curve[0] < 0.9}
    assert {each.label for each in found if each.verdict == "unlimited"} == unlimited
    assert {each.label for each in found if each.verdict == "never"} == never
    known = {each.label: each.rate_per_s.estimate for each in found if each.rate_per_s is not None}
    for label, curve in zip(labels, curves, strict=True):
        if label in known:
            last = max(rung for rung in range(6) if min(curve[: rung + 1]) >= 0.9)
            assert 2.0**last <= known[label] <= 2.0 ** (last + 1)
    if unlimited:
        assert told.startswith("Met at any rate: ")
        assert {*re.findall(r"c\d", told.partition(" unlimited")[0])} == unlimited
    elif known:
        best = re.match(r"Met up to [\d.,]+( ± [\d.,]+| \([^)]*\))? requests/s by (c\d)", told)
        assert best is not None
        assert known[best.group(2)] == max(known.values())
        own = {each.label: each.own_rates_per_s for each in found}
        assert ("±" in (best.group(1) or "")) == (num_replicates > 2 and len({*own[best.group(2)]}) > 1)
        assert ("Two replicates" in told) == (num_replicates == 2 and any(len({*own[c]}) > 1 for c in known))
        following = re.search(r"\. (c\d), the next", told)
        assert (following is not None) == (len(known) > 1)
        if following is not None:
            pairs = zip(own[following.group(1)], own[best.group(2)], strict=True)
            ratios = [one / other for one, other in pairs]
            most = np.mean(ratios) + T_95[num_replicates] * np.std(ratios, ddof=1) / num_replicates**0.5
            is_tied = "can't be told apart" in told or "can't tell from chance" in told
            assert is_tied == (most >= 1) or most == pytest.approx(1, rel=1e-3)
    else:
        assert told.startswith("Not met at any rate: " if {*labels} == never else "Met at every rate")


def test_a_trace_that_swings_is_told_with_what_would_not(tmp_path: Path) -> None:
    """Half of the trace comes at a tenth of the rate of the other: resamples differ by their mix."""
    random = np.random.default_rng(3)
    gaps = np.concatenate(
        [random.exponential(10.0, 60), random.exponential(1.0, 600), random.exponential(10.0, 60)]
    )
    times = np.cumsum(gaps)
    (tmp_path / "t.csv").write_text(TRACE + "".join(f"{time},8,1\n" for time in times))
    config = CONFIG | {"workload": {"type": "trace", "path": str(tmp_path / "t.csv")}}
    plan = Plan(share=0.9, num_replicates=3, tolerance=0.5)
    (note,) = capacity(config, plan).notes
    assert note.startswith("the intervals are wide, as the trace's own rate swings from ")
    assert "workload.rate_per_s brings every resample to one mean rate; workload.start_s=" in note
    start_s, end_s = (float(text) for text in re.findall(r"_s=([\d.]+)", note))
    steady = {"workload.start_s": start_s, "workload.end_s": end_s}
    assert capacity(config, plan, overrides=steady).notes == ()
    at_rate = capacity(config, plan, overrides={"workload.rate_per_s": 0.5})
    assert not any("rate_per_s brings" in note for note in at_rate.notes)
    rates = at_rate.curve.groupby("rate_per_s")["request_throughput_per_s"].count()
    assert len(rates) == at_rate.curve["rate_per_s"].nunique()


def test_the_rate_of_a_trace_is_no_axis() -> None:
    sweep = {"sweep": {"workload.rate_per_s": [1.0, 2.0]}}
    with pytest.raises(ConfigError) as caught:
        capacity(CONFIG | {"workload": {"type": "trace", "path": "azure-like.csv"}} | sweep)
    assert caught.value.problems == ("sweep: varies workload.rate_per_s, which is what capacity finds",)


def test_roles_of_pools_make_contenders() -> None:
    pools = [{"name": "prefill", "role": "prefill"}, {"name": "decode", "role": "decode"}]
    roles = {"cluster.pools.0.role": ["prefill", "both"], "cluster.pools.decode.role": ["decode", "both"]}
    workload = CONFIG["workload"] | {"num_requests": 60, "output_tokens": {"type": "fixed", "value": 4}}
    config = CONFIG | {
        "workload": workload,
        "scheduler": {"type": "vllm", "max_num_seqs": 1},
        "gpu": {"name": "h200", "price_per_hour": 2.0},
        "cluster": {"pools": pools},
        "slo": {"e2e_s": 10.0},
        "sweep": {"zip": roles},
    }
    answer = capacity(config, Plan(share=0.9, tolerance=0.5, num_replicates=2))
    first, second = (each.rate_per_s for each in answer.contenders)
    assert first is not None
    assert second is not None
    # A step to prefill and three to decode, one request at a time: apart, one in three seconds; together each
    # takes four for all of it, two in four seconds.
    assert second.estimate > 1.2 * first.estimate
    curve = answer.curve
    costs = 2.0 * 2 / curve["output_token_throughput_per_s"] * 1e6 / 3600
    assert curve["cost_per_million_tokens"].tolist() == pytest.approx(costs.tolist())
