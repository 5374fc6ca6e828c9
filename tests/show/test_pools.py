"""What a reader sees of pools: their figures, the KV caches handed over, replicas that come and go."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import cbsim
from cbsim.results.result import Result
from cbsim.results.step_work import has_utilization
from cbsim.show.perfetto import STATE_TID, write_timeline
from cbsim.show.reader_tables import compare_runs, kv_table, run_tables
from cbsim.show.replicas_plot import levels
from cbsim.show.report_file import make_report
from cbsim.show.timeline_plot import num_there, timeline, utilization
from tests.show import test_perfetto
from tests.show.test_perfetto import APART, read
from tests.show.test_report_file import CONFIG


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    folder = tmp_path_factory.mktemp("pools") / "apart"
    workload = CONFIG["workload"] | {"arrivals": {"type": "poisson", "rate_per_s": 20.0}}
    return cbsim.run(CONFIG | {"workload": workload, "cluster": APART}, out=folder), folder


def test_figures_of_each_pool(apart: tuple[Result, Path]) -> None:
    """As summed up from the tables; those of all replicas are the means over pools, by replicas."""
    result, _ = apart
    summary, steps, requests = result.summary, result.steps, result.requests
    pools = summary["pools"]
    assert [pools[name]["num_replicas"] for name in ("prompts", "answers")] == [1, 2]
    for name, figures in pools.items():
        own = steps[steps["pool"] == name]
        replica_s = summary["makespan_s"] * figures["num_replicas"]
        assert figures["num_steps"] == len(own)
        assert figures["busy_fraction"] == pytest.approx(own["duration_s"].sum() / replica_s)
        share_s = own["kv_blocks_used"] / own["kv_blocks_total"] * own["duration_s"]
        assert figures["kv_utilization"]["mean"] == pytest.approx(share_s.sum() / replica_s)
        assert figures["num_visits"] == (result.visits["pool"] == name).sum()
    for name in ("busy_fraction", "mfu", "mbu"):
        mean = (pools["prompts"][name] + 2 * pools["answers"][name]) / 3
        assert summary[name] == pytest.approx(mean)
    moved, seconds = summary["kv_transfers"], requests["part_kv_transfer_s"]
    assert moved["num"] == 80
    # 128 KiB a token of Llama-3-8B: 2 x 8 heads x 128 x 2 bytes x 32 layers.
    assert moved["num_bytes"] == requests["num_prompt_tokens"].sum() * 131_072
    for part in (0.5, 0.99):
        assert moved["transfer_s"][f"p{part * 100:.0f}"] == pytest.approx(seconds.quantile(part), abs=1e-9)


def test_figures_without_a_warm_up_are_those_of_the_others(apart: tuple[Result, Path]) -> None:
    result, _ = apart
    later = cbsim.run(result.config | {"measure": {"warmup_requests": 30}})
    assert later.summary["kv_transfers"]["num"] == 50
    assert later.summary["pools"]["answers"]["num_visits"] == 50
    expected = result.requests["part_kv_transfer_s"][30:].quantile(0.99)
    assert later.summary["kv_transfers"]["transfer_s"]["p99"] == pytest.approx(expected, abs=1e-9)


def test_a_reader_sees_them(apart: tuple[Result, Path]) -> None:
    result, _ = apart
    _, pools, transfers, _ = run_tables(result)
    assert [row[:6] for row in pools.rows] == [
        ("prompts", "prefill", "h200", "1", "1", "80"),
        ("answers", "decode", "h200", "2", "2", "80"),
    ]
    shown = dict(transfers.rows)
    assert shown["KV caches brought"] == "80"
    moved, link = result.summary["kv_transfers"], result.config["cluster"]["link"]
    alone_s = moved["num_bytes"] / 80 / (link["bandwidth_gb_s"] * 1e9) + link["latency_s"]
    assert float(shown["mean on the link if alone there (ms)"]) == pytest.approx(alone_s * 1e3, rel=0.01)
    assert [row[0] for row in kv_table({"it": result}).rows] == ["it: prompts", "it: answers"]
    rows = {axes.get_ylabel() for axes in timeline({"it": result}).axes}
    assert rows == {"it: prompts", "it: answers", ""}
    assert has_utilization(result)
    old = {"pools": [APART["pools"][0] | {"gpu": "a100-80g"}]}
    assert not has_utilization(replace(result, config=result.config | {"cluster": old}))


def test_requests_that_are_lost_are_handed_over_again(apart: tuple[Result, Path], tmp_path: Path) -> None:
    """Each transfer that ends counts; the timeline's spans stay disjoint, and parts are not told."""
    result, _ = apart
    faults = [{"pool": "answers", "replica": number, "at_s": 1.5, "repair_s": 0.5} for number in range(2)]
    again = cbsim.run(result.config | {"cluster": APART | {"faults": faults}})
    assert again.summary["kv_transfers"]["num"] == (again.events["event"] == "loaded").sum() > 80
    assert set(again.requests["state"]) == {"finished"}
    assert "part_decode_s" not in again.requests
    assert any("parts of latencies are not told where requests come again" in note for note in again.notes)
    rows = {row[0]: row[1:] for row in compare_runs({"it": result, "again": again}).rows}
    lost = again.summary["num_lost_to_failures"]
    assert rows["visits lost to failures"] == ("-", str(lost))
    assert "replicas of answers, mean" not in rows
    assert again.summary["mean_replicas"] == {"prompts": 1, "answers": 2}
    write_timeline(again, tmp_path / "t.json.gz")
    test_perfetto.test_spans_of_a_thread_are_nested_or_disjoint(read(tmp_path / "t.json.gz"))


COMES_AND_GOES = [
    (0.0, "answers", 2, "started"),
    (1.0, "answers", 2, "ready"),
    (2.0, "answers", 1, "failed"),
    (2.5, "answers", 2, "slowed"),
    (3.0, "answers", 1, "repaired"),
    (4.0, "answers", 2, "draining"),
    (5.0, "answers", 2, "stopped"),
]


def test_replicas_that_come_and_go() -> None:
    """Replica 1 serves from the beginning on, as its first event is no start."""
    events = pd.DataFrame(COMES_AND_GOES, columns=["time_s", "pool", "replica", "event"])
    found = levels(events, {1, 2, 3})
    assert found.time_s.tolist() == [0.0, 0.0, 1.0, 2.0, 2.5, 3.0, 4.0, 5.0]
    assert found.num_serving.tolist() == [2, 2, 3, 2, 2, 3, 2, 2]
    assert found.num_changing.tolist() == [0, 1, 0, 0, 0, 0, 1, 0]


def test_pictures_and_timeline_of_a_pool_that_grows(tmp_path: Path) -> None:
    """Shares over time are of the replicas that are there, so that their means are those of the summary."""
    scaling = {"type": "schedule", "max": 3, "schedule": [[1.0, 3], [2.0, 1]], "provision_s": 0.25}
    workload = CONFIG["workload"] | {"arrivals": {"type": "poisson", "rate_per_s": 20.0}}
    cluster = {"pools": [{"name": "all"}], "autoscale": scaling | {"load_gb_s": 1e6}}
    result = cbsim.run(CONFIG | {"workload": workload, "cluster": cluster})
    figures = result.summary
    assert 1.0 < figures["mean_replicas"]["all"] < 3.0
    figure, *_ = run_tables(result)
    assert any(row[0] == "replicas of all, mean" for row in figure.rows)
    for axes, name in zip(utilization({"it": result}).axes, ("mfu", "mbu"), strict=True):
        _, dashed = axes.get_lines()
        assert dashed.get_ydata()[0] == pytest.approx(figures[name], rel=0.02)
    edges_s = np.array([0.0, 0.5, 1.0, 1.5, 2.5])
    assert num_there(result, result.steps, edges_s)[:3].tolist() == [1.0, 1.0, 3.0]
    write_timeline(result, tmp_path / "t.json.gz")
    trace = read(tmp_path / "t.json.gz")
    states: dict[int, list[tuple[str, float]]] = {}
    for event in trace["traceEvents"]:
        if event["tid"] == STATE_TID and event["ph"] == "X":
            states.setdefault(event["pid"], []).append((event["name"], event["ts"] / 1e6))
    assert states[1] == [("serving", 0.0)]
    assert [name for name, _ in states[2]] == ["starting", "serving", "draining"][: len(states[2])]
    assert states[3][0] == ("starting", 1.0)
    test_perfetto.test_spans_of_a_thread_are_nested_or_disjoint(trace)


def test_the_report_draws_replicas_where_the_run_has_them(apart: tuple[Result, Path]) -> None:
    result, folder = apart
    assert result.replicas is None
    names = ("time_s", "pool", "replica", "event")
    columns: dict[str, Any] = dict(zip(names, zip(*COMES_AND_GOES, strict=True), strict=True))
    labels = {name: pa.array(columns[name]).dictionary_encode() for name in ("pool", "event")}
    pq.write_table(pa.table(columns | labels), folder / "replicas.parquet")
    page = make_report([folder])
    assert "What the replicas of each pool did" in page
    assert "Replicas over time: apart" in page
    assert "those that start or drain" in page
