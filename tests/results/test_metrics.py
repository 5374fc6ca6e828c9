import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbsim.results.metrics import flatten, summarize, weighted_quantiles
from cbsim.workload.request import RequestState
from tests.run_logs import PAPER, empty_log, paper_log, random_log

KEYS = [
    "num_requests",
    "num_finished",
    "num_rejected",
    "makespan_s",
    "request_throughput_per_s",
    "output_token_throughput_per_s",
    "total_token_throughput_per_s",
    "goodput_per_s",
    "slo_attainment",
    "slo_met",
    "ttft_s",
    "tpot_s",
    "itl_s",
    "e2e_s",
    "queue_s",
    "num_steps",
    "num_preemptions",
    "num_tokens_recomputed",
    "busy_fraction",
    "mfu",
    "mbu",
    "kv_utilization",
    "prefix_hit_rate",
    "simulation",
    "notes",
    "kv_waste",
    "rejection_reasons",
    "kv_cache_tokens",
    "longest_context_tokens",
    "longest_request_tokens",
]
NOTHING = dict.fromkeys(("mean", "p50", "p90", "p95", "p99", "max"))


def test_every_figure_of_the_paper_log():
    simulation = {"cpu_s": 0.25, "wall_s": 0.5}
    summary = summarize(
        paper_log(), PAPER, {"ttft_s": 1.75, "tpot_s": 1.2}, simulation=simulation, notes=["mind the gap"]
    )
    assert list(summary) == KEYS
    assert summary["num_requests"] == 4
    assert summary["num_finished"] == 3
    assert summary["num_rejected"] == 1
    assert summary["makespan_s"] == 5.0
    assert summary["request_throughput_per_s"] == 3 / 5
    assert summary["output_token_throughput_per_s"] == 6 / 5
    assert summary["total_token_throughput_per_s"] == (4 + 2 + 5 + 6) / 5
    assert summary["goodput_per_s"] == 2 / 5
    assert summary["slo_attainment"] == 2 / 4
    assert summary["slo_met"] is False
    assert summary["ttft_s"] == pytest.approx(
        {"mean": 1.5, "p50": 1.5, "p90": 1.9, "p95": 1.95, "p99": 1.99, "max": 2.0}, rel=1e-15
    )
    assert summary["tpot_s"] == pytest.approx(
        {"mean": 1.25, "p50": 1.25, "p90": 1.45, "p95": 1.475, "p99": 1.495, "max": 1.5}, rel=1e-15
    )
    assert summary["itl_s"] == pytest.approx(
        {"mean": 3.5 / 3, "p50": 1.0, "p90": 1.4, "p95": 1.45, "p99": 1.49, "max": 1.5}, rel=1e-15
    )
    assert summary["e2e_s"]["mean"] == (3.0 + 1.5 + 3.5) / 3
    assert summary["queue_s"]["mean"] == 0.5
    assert summary["queue_s"]["max"] == 1.0
    assert summary["num_steps"] == 4
    assert summary["num_preemptions"] == 2
    assert summary["num_tokens_recomputed"] == 3
    assert summary["busy_fraction"] == 4.5 / 5
    assert summary["mfu"] == pytest.approx((14 * 68 + 6 * 20 + 45 * 8) / 5000, rel=1e-15)
    assert summary["mbu"] == pytest.approx((4 * 120 + (28 + 14) * 8) / 5000, rel=1e-15)
    assert summary["kv_utilization"] == pytest.approx({"mean": (0.3 + 0.4 + 0.7 + 0.6) / 5, "max": 0.7})
    assert summary["prefix_hit_rate"] is None
    assert summary["kv_waste"] == {"mean": (2 + 1 + 3 + 2 * 1.5) / (6 + 8 + 14 + 8 * 1.5), "max": 2 / 6}
    assert summary["rejection_reasons"] == {"too long": 1}
    assert summary["notes"] == ["mind the gap"]
    assert summary["simulation"]["cpu_s"] == 0.25
    assert summary["simulation"]["wall_s"] == 0.5
    assert summary["simulation"]["metrics_cpu_s"] >= 0


@pytest.mark.parametrize("piece", [1, 3])
def test_figures_taken_piece_by_piece_are_the_same(piece, monkeypatch):
    whole = summarize(paper_log(), PAPER)
    monkeypatch.setattr("cbsim.base.records.PIECE", piece)
    assert summarize(paper_log(), PAPER) | {"simulation": None} == whole | {"simulation": None}


def test_more_gpus_share_the_work():
    deployment = dataclasses.replace(PAPER, num_gpus=2, num_replicas=3)
    one, six = summarize(paper_log(), PAPER), summarize(paper_log(), deployment)
    assert six["mfu"] == pytest.approx(one["mfu"] / 6)
    assert six["mbu"] == pytest.approx(one["mbu"] / 6)
    assert six["busy_fraction"] == pytest.approx(one["busy_fraction"] / 3)
    assert six["kv_utilization"]["mean"] == pytest.approx(one["kv_utilization"]["mean"] / 3)
    assert six["kv_waste"] == one["kv_waste"]


def test_time_begins_with_the_first_arrival():
    log = paper_log()
    late = {name: log.requests[name] + 7 for name in log.requests if name.endswith(("arrival_s", "_at_s"))}
    late_log = dataclasses.replace(log, requests=log.requests | late, end_s=12.0)
    for name, value in summarize(late_log, PAPER).items():
        if name != "simulation":
            assert value == summarize(log, PAPER)[name], name


@pytest.mark.parametrize(
    ("slo", "num_good"),
    [
        ({"ttft_s": 1.0}, 1),
        ({"ttft_s": 0.99}, 0),
        ({"tpot_s": 1.0}, 2),
        ({"itl_s": 1.4}, 2),
        ({"e2e_s": 3.0}, 2),
        ({"e2e_s": 3.0, "itl_s": 0.5}, 1),
    ],
)
def test_goodput_counts_requests_within_every_limit(slo, num_good):
    summary = summarize(paper_log(), PAPER, slo)
    assert summary["goodput_per_s"] == num_good / 5
    assert summary["slo_attainment"] == num_good / 4


def test_an_itl_limit_holds_for_every_gap():
    log = paper_log()
    uneven = dataclasses.replace(
        log, requests=log.requests | {"max_itl_s": np.array([1.9, np.nan, 1.5, np.nan])}
    )
    assert summarize(uneven, PAPER, {"itl_s": 1.6})["goodput_per_s"] == 2 / 5
    assert summarize(uneven, PAPER, {"tpot_s": 1.6})["goodput_per_s"] == 3 / 5


def test_unfinished_requests_miss_and_keep_their_first_token():
    log = paper_log()
    finished_at_s, state = log.requests["finished_at_s"].copy(), log.requests["state"].copy()
    finished_at_s[0], state[0] = np.nan, RequestState.UNFINISHED
    stopped = dataclasses.replace(
        log, requests=log.requests | {"finished_at_s": finished_at_s, "state": state}
    )
    summary = summarize(stopped, PAPER, {"ttft_s": 9.0})
    assert summary["num_finished"] == 2
    assert summary["slo_attainment"] == 2 / 4
    assert summary["ttft_s"]["mean"] == 1.5
    assert summary["tpot_s"]["mean"] == 1.5
    assert summary["itl_s"]["mean"] == 3.5 / 3


def test_nobody_came():
    summary = summarize(empty_log(), PAPER)
    assert list(summary) == KEYS
    assert summary["num_requests"] == summary["num_finished"] == summary["num_steps"] == 0
    for name in ("ttft_s", "tpot_s", "itl_s", "e2e_s", "queue_s"):
        assert summary[name] == NOTHING
    for name in (
        "request_throughput_per_s",
        "goodput_per_s",
        "slo_attainment",
        "mfu",
        "mbu",
        "busy_fraction",
    ):
        assert summary[name] is None
    json.dumps(summary, allow_nan=False)


def test_everybody_was_rejected():
    log, empty = paper_log(), empty_log()
    requests = {name: column[3:] for name, column in log.requests.items()}
    summary = summarize(dataclasses.replace(empty, requests=requests, rejections={0: "too long"}), PAPER)
    assert (summary["num_requests"], summary["num_rejected"]) == (1, 1)
    assert (summary["slo_attainment"], summary["slo_met"]) == (None, None)
    given = summarize(dataclasses.replace(empty, requests=requests), PAPER, {"ttft_s": {"p95": 1.0}})
    assert given["slo_met"] is False
    assert summary["ttft_s"] == NOTHING
    json.dumps(summary, allow_nan=False)


def test_one_token_answers_have_no_tpot_and_no_gaps():
    log = paper_log()
    rows = {name: column[1:2] for name, column in log.requests.items()}
    none = np.empty(0)
    summary = summarize(dataclasses.replace(log, requests=rows, gaps=[(none, none.astype(np.int64))]), PAPER)
    assert summary["tpot_s"] == summary["itl_s"] == NOTHING
    assert summary["ttft_s"]["p99"] == 1.5


def test_prefix_hits():
    log = dataclasses.replace(paper_log(), num_prompt_tokens_queried=8, num_prompt_tokens_hit=2)
    assert summarize(log, PAPER)["prefix_hit_rate"] == 0.25


def test_rejection_reasons_come_most_frequent_first():
    log = dataclasses.replace(paper_log(), rejections={0: "b", 1: "a", 2: "c", 3: "c"})
    assert list(summarize(log, PAPER)["rejection_reasons"].items()) == [("c", 2), ("a", 1), ("b", 1)]


gaps = st.lists(
    st.tuples(st.one_of(st.floats(1e-6, 1e4), st.sampled_from([0.01, 0.02, 0.1])), st.integers(1, 40)),
    min_size=1,
    max_size=30,
)


@given(gaps, st.lists(st.floats(0, 1), min_size=1, max_size=6), st.booleans(), st.sampled_from([1, 5, 100]))
@settings(max_examples=200, deadline=None)
def test_weighted_quantiles_are_numpys_to_the_last_bit(pairs, quantiles, rising, num_kept):
    values, counts = (np.array(column) for column in zip(*(sorted(pairs) if rising else pairs), strict=True))
    wanted = np.array([*quantiles, 0.0, 0.5, 0.9, 0.95, 0.99, 1.0])
    expanded = np.repeat(values, counts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cbsim.results.metrics.ROWS_KEPT", num_kept)
        found = weighted_quantiles([(values[:3], counts[:3]), (values[3:], counts[3:])], wanted)
    assert found.tolist() == np.quantile(expanded, wanted).tolist()


def test_weighted_quantiles_of_many_gaps():
    rng = np.random.default_rng(1)
    values, counts = rng.lognormal(-4, 1, 20_000), rng.integers(0, 30, 20_000)
    wanted = np.array([0.5, 0.9, 0.95, 0.99, 0.999])
    expanded = np.repeat(values, counts)
    assert (
        weighted_quantiles([(values[:3], counts[:3]), (values[3:], counts[3:])], wanted).tolist()
        == np.quantile(expanded, wanted).tolist()
    )


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_properties_of_any_run(seed):
    log = random_log(seed)
    summary = summarize(log, PAPER)
    for name in ("ttft_s", "tpot_s", "itl_s", "e2e_s", "queue_s"):
        parts = list(summary[name].values())
        assert parts[1:] == sorted(parts[1:])
        assert 0 <= parts[0] <= parts[-1]
    assert summary["goodput_per_s"] is None
    assert 0 <= summary["busy_fraction"] <= 1
    assert 0 <= summary["kv_utilization"]["mean"] <= summary["kv_utilization"]["max"] <= 1
    json.dumps(summary, allow_nan=False)


def test_flatten_makes_one_row():
    row = flatten(summarize(paper_log(), PAPER, notes=["one", "two"]))
    assert row["ttft_s.max"] == 2.0
    assert row["kv_utilization.max"] == 0.7
    assert row["notes"] == "one; two"
    assert row["rejection_reasons"] == "1 x too long"
    assert not any(name.startswith("simulation") for name in row)
    assert not any(isinstance(value, (dict, list)) for value in row.values())


def test_what_is_empty_of_shared_blocks_is_not_told() -> None:
    log = dataclasses.replace(paper_log(), num_prompt_tokens_hit=16)
    assert summarize(log, PAPER)["kv_waste"] == {"mean": None, "max": None}


def test_a_price_tells_what_a_million_output_tokens_cost():
    summary = summarize(paper_log(), PAPER)
    assert "cost_per_million_tokens" not in summary
    priced = PAPER.gpu.model_copy(update={"price_per_hour": 3.0})
    six = summarize(paper_log(), dataclasses.replace(PAPER, gpu=priced, num_gpus=2, num_replicas=3))
    tokens_per_hour = 3600 * summary["output_token_throughput_per_s"]
    assert six["cost_per_million_tokens"] == pytest.approx(6 * 3.0 / (tokens_per_hour / 1e6))
    nothing = dataclasses.replace(PAPER, gpu=priced)
    assert summarize(empty_log(), nothing)["cost_per_million_tokens"] is None
