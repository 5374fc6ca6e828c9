import dataclasses

import pandas as pd
import pytest

from cbsim.show.reader_tables import (
    MAX_RUNS_AS_COLUMNS,
    compare_points,
    compare_runs,
    kv_table,
    point_labels,
    run_answer,
    run_tables,
)
from tests.run_logs import empty_log, make_result, paper_log


def row(table, name):
    return next(cells[1:] for cells in table.rows if cells[0] == name)


@pytest.fixture
def slower():
    """The paper run with every token a second later."""
    log = paper_log()
    later = {name: log.requests[name] + 1 for name in ("first_token_at_s", "finished_at_s")}
    return dataclasses.replace(log, requests=log.requests | later, end_s=6.0, rejections={})


def test_two_runs_side_by_side(slower):
    table = compare_runs(
        {"fast": make_result(paper_log(), slo={"ttft_s": 1.5}), "slow": make_result(slower, notes=["why"])}
    )
    assert table.header == ("", "fast", "slow")
    assert row(table, "finished") == ("3", "3")
    assert row(table, "throughput (req/s)") == ("0.600*", "0.500")
    assert row(table, "TTFT p50 (s)") == ("1.50*", "2.50")
    assert row(table, "TPOT p99 (ms)") == ("1,495", "1,495")
    assert row(table, "ITL p50 (ms)") == ("1,000", "1,000")
    assert row(table, "requests within SLO") == ("50.0%", "-")
    assert row(table, "SLO") == ("not met", "-")
    assert "SLO" not in [cells[0] for cells in compare_runs({"none": make_result(slower)}).rows]
    assert row(table, "KV use, max") == ("70.0%", "70.0%")
    assert table.notes == ("fast: rejected: 1 x too long", "slow: why")


def test_a_note_of_all_runs_is_told_once():
    both = {name: make_result(paper_log(), notes=["same"]) for name in ("one", "two")}
    assert compare_runs(both).notes == ("same", "rejected: 1 x too long")


def test_many_runs_become_rows():
    many = {f"run {number}": make_result(paper_log()) for number in range(MAX_RUNS_AS_COLUMNS + 1)}
    table = compare_runs(many)
    assert [cells[0] for cells in table.rows] == list(many)
    assert "TTFT p99 (s)" in table.header


def test_one_run():
    figures, latencies = run_tables(make_result(paper_log(), "mine", notes=["why"]))
    assert figures.header[0] == "mine"
    assert row(figures, "requests") == ("4",)
    assert row(figures, "makespan") == ("5.00 s",)
    # Nothing is promised, and so nothing is good.
    assert row(figures, "goodput (req/s)") == row(figures, "requests within SLO") == ("-",)
    assert row(figures, "MFU") == ("28.6%",)
    assert row(figures, "prefix-cache hits") == ("-",)
    assert latencies.header == ("latency", "mean", "p50", "p90", "p95", "p99", "max")
    assert row(latencies, "ITL (ms)") == ("1,167", "1,000", "1,400", "1,450", "1,490", "1,500")
    assert latencies.notes == ("why", "rejected: 1 x too long")


def test_an_empty_run_shows_dashes():
    figures, latencies = run_tables(make_result(empty_log()))
    assert row(figures, "throughput (req/s)") == ("-",)
    assert row(latencies, "TTFT (s)") == ("-",) * 6
    assert row(compare_runs({"none": make_result(empty_log())}), "TTFT p50 (s)") == ("-",)


def test_what_the_kv_cache_holds_beside_the_longest_context_and_request():
    table = kv_table({"one": make_result(paper_log()), "none": make_result(empty_log())})
    # Nobody told how many tokens fit; the model was made for 64, the rejected request has 106.
    assert table.rows == (("one", "-", "64", "106"), ("none", "-", "64", "-"))


def test_points_are_named_by_what_is_swept():
    table = pd.DataFrame({"scheduler.chunk_size": [128, 512], "rate": [0.5, 2.0], "num_requests": [1, 1]})
    assert point_labels(table) == ["chunk_size 128, rate 0.5", "chunk_size 512, rate 2"]
    assert point_labels(table.drop(columns="rate")) == ["chunk_size 128", "chunk_size 512"]
    alone = pd.DataFrame({"num_requests": [1], "point": ["a1b2"]})
    assert point_labels(alone) == ["a1b2"]


def test_points_of_a_sweep_with_a_failed_one(tmp_path):
    from cbsim.results.metrics import flatten

    figures = flatten(make_result(paper_log(), notes=["why"]).summary)
    table = pd.DataFrame(
        [
            {"x": "a", **figures, "point": "p", "error": None},
            {"x": "b", "point": "q", "error": "MemoryError: "},
        ]
    )
    compared = compare_points(table)
    assert compared.header == ("", "a")
    assert row(compared, "TTFT p50 (s)") == ("1.50",)
    assert compared.notes == ("a: why", "a: 1 x too long", "b: failed: MemoryError: ")


@pytest.mark.parametrize(
    ("bounds", "told"),
    [
        ([0.9, 1.9], "The error of step times does not change that: they are measured, ± 6%."),
        (
            [1.4, 2.4],
            "That is not sure: step times are measured, ± 6%, and TTFT p95 may be 1.40 s to 2.40 s in truth.",
        ),
    ],
)
def test_how_sure_a_verdict_is_follows_it(bounds, told):
    result = make_result(paper_log(), slo={"ttft_s": {"p95": 2.0}, "share": 0.7})
    result.config["slo"] = {"ttft_s": {"p95": 2.0}, "share": 0.7}
    verdict = "Met: TTFT p95 is 1.95 s of the 2 s allowed."
    assert run_answer(result) == [verdict]
    result.summary["interval"] = {"basis": "measured", "step_error_pct": 6.0, "ttft_s": {"p95": bounds}}
    assert run_answer(result) == [verdict, told]
    own = make_result(paper_log(), slo={"ttft_s": 2.0})
    own.config["slo"] = {"ttft_s": 2.0}
    own.summary["interval"] = {"basis": "measured", "step_error_pct": 6.0, "ttft_s": {"p99": bounds}}
    assert run_answer(own)[1].startswith(told[:12])
