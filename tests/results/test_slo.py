"""What a run meets of its SLO: each condition against the figures of the summary, as a naive reader would."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cbsim
from cbsim.base.errors import CbsimError
from cbsim.results.metrics import LATENCIES, QUANTILES, flatten, summarize
from cbsim.results.slo import EACH, LatencyLimits, Slo, SloConfig
from cbsim.studies.experiment import Experiment
from tests.run_logs import PAPER, paper_log, random_log

STATISTICS = ("mean", *QUANTILES, "max")
LIMITED = ("ttft_s", "tpot_s", "itl_s", "e2e_s")
limit = st.floats(0.01, 30)
promises = st.fixed_dictionaries(
    {},
    optional={
        name: st.one_of(
            limit, st.dictionaries(st.sampled_from((EACH, *STATISTICS)), limit, min_size=1, max_size=3)
        )
        for name in LIMITED
    }
    | {"share": st.sampled_from([0.5, 0.9, 0.99, 1.0])},
)


def test_every_statistic_of_a_summary_may_be_limited() -> None:
    assert tuple(LatencyLimits.model_fields) == (EACH, *STATISTICS)
    assert set(LIMITED) == {*SloConfig.model_fields} - {"share"} <= {*LATENCIES}


@given(promises)
def test_plain_data_says_the_same(given_slo: dict[str, Any]) -> None:
    slo = Slo.of(given_slo)
    assert Slo.of(slo.plain()) == (slo if slo else Slo())
    assert Slo.of(SloConfig.model_validate(given_slo).limits()) == (slo if slo else Slo())


@given(promises, st.integers(0, 50))
@settings(max_examples=150, deadline=None)
def test_met_is_what_a_naive_reader_of_the_summary_finds(given_slo: dict[str, Any], seed: int) -> None:
    summary = summarize(random_log(seed), PAPER, given_slo)
    slo = Slo.of(given_slo)
    kept = summary["slo_attainment"]
    if kept is None:
        kept = summary["num_finished"] / summary["num_requests"]
    holds = [kept >= given_slo.get("share", 0.99)]
    for name in LIMITED:
        limits = given_slo.get(name)
        for statistic, most in limits.items() if isinstance(limits, dict) else ():
            if statistic != EACH:
                holds.append(summary[name][statistic] <= most)
    assert summary["slo_met"] is (all(holds) if slo else None)
    if slo:
        figures = flatten(summary)
        misses = slo.misses(figures)
        assert len(misses) == holds.count(False)
        assert (slo.margin(figures) < 0) == bool(misses)
        assert slo.verdict(figures).startswith("Not met: " if misses else "Met: ")


@pytest.mark.parametrize(
    ("slo", "is_met", "told"),
    [
        # TTFT of a, b, c: 1, 1.5, 2 s; TPOT of a and c: 1 and 1.5 s; d is rejected.
        ({"ttft_s": {"p50": 1.5}, "share": 0.75}, True, "Met: TTFT p50 is 1.50 s of the 1.5 s allowed."),
        (
            {"tpot_s": {"p99": 1.3}, "share": 0.75},
            False,
            "Not met: the run misses TPOT p99 by 15% (1.50 s) (limits: TPOT p99 ≤ 1.3 s).",
        ),
        ({"ttft_s": {"p95": 9.0}}, False, "Not met: the run finishes 75.0% of requests, not 99%."),
        (
            {"ttft_s": 1.5, "tpot_s": {"p99": 0.5}, "share": 0.6},
            False,
            "Not met: the run misses TPOT p99 by a factor of 2.99 (1.50 s) and has 50.0% of requests within "
            "TTFT ≤ 1.5 s, not 60% (limits: TPOT p99 ≤ 500 ms).",
        ),
        ({"ttft_s": {"each": 1.5}, "share": 0.5}, True, "Met: 50.0% of requests are within TTFT ≤ 1.5 s."),
        ({}, None, "No SLO is given."),
    ],
)
def test_verdicts_of_the_paper_run(slo: dict[str, Any], is_met: bool | None, told: str) -> None:
    summary = summarize(paper_log(), PAPER, slo)
    assert summary["slo_met"] is is_met
    assert Slo.of(slo).verdict(flatten(summary)) == told


def test_without_limits_on_each_request_there_is_no_goodput() -> None:
    for slo in ({}, {"ttft_s": {"p95": 9.0}}):
        summary = summarize(paper_log(), PAPER, slo)
        assert (summary["goodput_per_s"], summary["slo_attainment"]) == (None, None)


def test_a_latency_that_no_answer_has_is_not_missed() -> None:
    config = {
        "workload": {
            "type": "synthetic",
            "num_requests": 5,
            "arrivals": {"type": "constant", "rate_per_s": 1.0},
            "prompt_tokens": {"type": "fixed", "value": 10},
            "output_tokens": {"type": "fixed", "value": 1},
        },
        "scheduler": "vllm",
        "cost_model": {"type": "constant", "step_s": 0.1},
        "slo": {"tpot_s": {"p99": 0.01}},
    }
    result = cbsim.run(config)
    assert result.summary["slo_met"] is True
    assert result.slo == {"tpot_s": {"p99": 0.01}}
    too_long = {"kv_cache": {"num_blocks": 1, "block_size": 4}}
    assert cbsim.run(config | too_long).summary["slo_met"] is False


def test_a_share_is_never_rounded_to_what_it_misses() -> None:
    slo = Slo.of({"ttft_s": 1.0})
    figures = {"num_requests": 100_000, "num_finished": 100_000, "slo_attainment": 0.98999}
    (miss,) = slo.misses(figures)
    assert slo.miss_words(miss) == "has 98.999% of requests within TTFT ≤ 1 s, not 99%"
    assert (
        slo.verdict(figures | {"slo_attainment": 0.99996}) == "Met: 99.99% of requests are within TTFT ≤ 1 s."
    )


def test_a_damaged_limit_is_told() -> None:
    with pytest.raises(CbsimError) as caught:
        Slo.of({"ttft_s": "x"})
    assert caught.value.problems == ("slo.ttft_s: got 'x'; expected a number",)


BASE = {
    "workload": {"type": "trace", "path": "azure-like.csv"},
    "scheduler": "vllm",
    "kv_cache": {"num_blocks": 100},
}


@pytest.mark.parametrize(
    ("slo", "overrides", "limits"),
    [
        ({}, ["slo.ttft_s.p95=1.5"], [{"ttft_s": {"p95": 1.5}}]),
        ({"ttft_s": 2.0}, ["slo.ttft_s.p95=1.5"], [{"ttft_s": {"each": 2.0, "p95": 1.5}}]),
        ("chat", ["slo.tpot_s.p99=0.06"], [{"ttft_s": 2.0, "tpot_s": {"each": 0.1, "p99": 0.06}}]),
        ({"ttft_s": {"p95": 1.5}}, ["slo.ttft_s=3"], [{"ttft_s": 3.0}]),
        ({"ttft_s": 2}, ["slo.share=0.9"], [{"ttft_s": 2.0, "share": 0.9}]),
        (
            {},
            ["sweep.slo.tpot_s=[0.1, 0.2]", "slo.tpot_s.p99=0.06"],
            [{"tpot_s": {"each": 0.1, "p99": 0.06}}, {"tpot_s": {"each": 0.2, "p99": 0.06}}],
        ),
        (
            {"tpot_s": 1.0},
            ["sweep.slo.tpot_s.p95=[0.1, 0.2]"],
            [{"tpot_s": {"each": 1.0, "p95": 0.1}}, {"tpot_s": {"each": 1.0, "p95": 0.2}}],
        ),
    ],
)
def test_a_number_becomes_a_mapping_where_a_key_leads_into_it(
    slo: Any, overrides: list[str], limits: list[dict[str, Any]]
) -> None:
    experiment = Experiment.from_mapping(BASE | {"slo": slo}, overrides)
    assert [point.slo.limits() for _, point in experiment.points()] == limits
    again = Experiment.from_mapping(experiment.resolved())
    assert [point.slo.limits() for _, point in again.points()] == limits
