"""The timeline file keeps the rules of the Trace Event Format, and shows what the run did."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import cbsim
from cbsim.base.units import US_PER_S
from cbsim.cli import main
from cbsim.results.result import Result
from cbsim.show.perfetto import (
    FIRST_QUEUE_TID,
    FIRST_SLOT_TID,
    FIRST_TRANSFER_TID,
    STEPS_TID,
    assign_lanes,
    write_timeline,
)
from tests.run_logs import empty_log, make_result

NS = 1e-3
"""A nanosecond in the file's unit."""
CONFIG: dict[str, Any] = {
    "name": "crowded",
    "workload": {
        "type": "synthetic",
        "num_requests": 60,
        "arrivals": {"type": "poisson", "rate_per_s": 40.0},
        "prompt_tokens": {"type": "uniform", "min": 50, "max": 400},
        "output_tokens": {"type": "uniform", "min": 5, "max": 120},
    },
    "scheduler": {"type": "preemptive", "max_num_seqs": 12, "max_tokens_per_step": 256, "chunk_size": 128},
    "kv_cache": {"num_blocks": 120},
    "replicas": {"count": 2},
}


def run(**changed: Any) -> Result:
    return cbsim.run(CONFIG | changed)


@pytest.fixture(scope="module", params=[True, False], ids=["batches", "no-batches"])
def crowded(request: pytest.FixtureRequest) -> Result:
    result = run(output={"batches": request.param})
    assert result.summary["num_preemptions"] > 0
    return result


def read(path: Path) -> dict[str, Any]:
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        trace: dict[str, Any] = json.load(stream)
    return trace


@pytest.fixture(scope="module")
def trace(crowded: Result, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("trace") / "timeline.json.gz"
    write_timeline(crowded, path)
    return read(path)


def spans(trace: dict[str, Any]) -> list[dict[str, Any]]:
    return [event for event in trace["traceEvents"] if event["ph"] == "X"]


def test_events_have_the_fields_of_their_phase(trace: dict[str, Any]) -> None:
    assert trace["displayTimeUnit"] == "ms"
    for event in trace["traceEvents"]:
        assert event["ph"] in ("X", "C", "M")
        assert isinstance(event["name"], str)
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        assert event["ts"] >= 0
        if event["ph"] == "X":
            assert event["dur"] >= 0
        if event["ph"] == "C":
            assert all(isinstance(value, int | float) and value >= 0 for value in event["args"].values())


def test_processes_and_threads_are_named_once(trace: dict[str, Any]) -> None:
    names = {
        (event["name"], event["pid"], event["tid"]): event["args"]["name"]
        for event in trace["traceEvents"]
        if event["ph"] == "M"
    }
    assert names["process_name", 1, 0] == "replica 0"
    assert names["process_name", 2, 0] == "replica 1"
    used = {("thread_name", span["pid"], span["tid"]) for span in spans(trace)}
    assert used == {key for key in names if key[0] == "thread_name"}
    assert len(names) == sum(event["ph"] == "M" for event in trace["traceEvents"])


def test_spans_of_a_thread_are_nested_or_disjoint(trace: dict[str, Any]) -> None:
    threads = defaultdict(list)
    for span in spans(trace):
        threads[span["pid"], span["tid"]].append((span["ts"], -(span["ts"] + span["dur"])))
    for thread in threads.values():
        open_until: list[float] = []
        for start, negative_end in sorted(thread):
            while open_until and open_until[-1] <= start + NS:
                open_until.pop()
            assert not open_until or -negative_end <= open_until[-1] + NS
            open_until.append(-negative_end)


def test_each_request_is_queued_and_runs_as_its_row_says(crowded: Result, trace: dict[str, Any]) -> None:
    queued, stays = {}, defaultdict(list)
    for span in spans(trace):
        if span["tid"] >= FIRST_QUEUE_TID and span["cat"] == "queued":
            queued[span["args"]["request"]] = span["dur"]
        elif FIRST_SLOT_TID <= span["tid"] < FIRST_QUEUE_TID and "end" in span["args"]:
            stays[span["name"]].append(span)
    for row in crowded.requests.to_dict("records"):
        of_request = stays[row["request_id"]]
        assert len(of_request) == row["num_preemptions"] + 1
        last = max(of_request, key=lambda span: span["ts"])
        assert last["args"]["end"] == "finished"
        assert last["ts"] + last["dur"] == pytest.approx(row["finished_at_s"] * US_PER_S, abs=1)
        # With asynchronous scheduling a request starts after it is admitted, never before.
        assert queued.get(row["request_id"], 0) <= row["queue_s"] * US_PER_S + 1


def test_chunks_add_up_to_the_prompts(crowded: Result, trace: dict[str, Any]) -> None:
    chunks = defaultdict(int)
    for span in spans(trace):
        name, _, size = span["name"].partition(" ")
        if span["tid"] != STEPS_TID and name == "prefill" and size:
            chunks[span["args"]["request"]] += int(size)
    if crowded.batches is None:
        assert not chunks
        assert "chunks are told apart only with output.batches" in trace["otherData"]["notes"][0]
        return
    untouched = crowded.requests[crowded.requests["num_preemptions"] == 0]
    assert len(untouched)
    for row in untouched.to_dict("records"):
        assert chunks[row["request_id"]] == row["num_prompt_tokens"]


def test_counters_tell_the_steps(crowded: Result, trace: dict[str, Any]) -> None:
    counters = [event for event in trace["traceEvents"] if event["ph"] == "C"]
    assert {event["name"] for event in counters} == {
        *("queue (requests)", "batch (requests)", "batch (tokens)", "KV blocks", "MFU (%)", "MBU (%)"),
    }
    waiting = [event["args"]["waiting"] for event in counters if event["name"] == "queue (requests)"]
    assert sorted(waiting) == sorted(crowded.steps["num_waiting"])
    last = max(event["ts"] for event in counters)
    idle = [event["args"] for event in counters if event["ts"] == last and event["name"] == "batch (tokens)"]
    assert idle == [{"prefill": 0, "decode": 0}]


def test_large_runs_are_sampled_and_say_so(crowded: Result, tmp_path: Path) -> None:
    path = tmp_path / "timeline.json.gz"
    notes = write_timeline(crowded, path, max_requests=25, max_steps=100)
    assert notes[0] == "sampled: one of 3 requests is shown, of 60"
    assert notes[1].startswith("sampled: one of ")
    trace = read(path)
    assert trace["otherData"]["notes"] == notes
    shown = {span["name"] for span in spans(trace) if "end" in span["args"]}
    assert shown == {f"r{number}" for number in range(0, 60, 3)}


def test_equal_runs_give_equal_bytes(crowded: Result, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_timeline(crowded, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_an_empty_run_has_an_empty_timeline(tmp_path: Path) -> None:
    write_timeline(make_result(empty_log()), tmp_path / "t.json.gz")
    assert read(tmp_path / "t.json.gz")["traceEvents"] == []


def test_unfinished_requests_end_with_the_run(tmp_path: Path) -> None:
    result = run(stop_at_s=0.8)
    assert (result.requests["state"] == "unfinished").any()
    write_timeline(result, tmp_path / "t.json.gz")
    ends = [span["args"]["end"] for span in spans(read(tmp_path / "t.json.gz")) if "end" in span["args"]]
    assert "unfinished" in ends


APART = {
    "pools": [{"name": "prompts", "role": "prefill"}, {"name": "answers", "role": "decode", "count": 2}],
    "link": {"bandwidth_gb_s": 1.0},
}


def test_kv_caches_go_from_slot_to_slot(tmp_path: Path) -> None:
    """Pools have names; transfers have spans, and arrows that begin, pass and end in those of a request."""
    scheduler = {"type": "vllm", "max_num_seqs": 12, "max_tokens_per_step": 256}
    result = run(cluster=APART, replicas={}, scheduler=scheduler, kv_cache={"num_blocks": 40})
    assert result.summary["num_preemptions"] > 0
    write_timeline(result, tmp_path / "t.json.gz")
    trace = read(tmp_path / "t.json.gz")
    test_spans_of_a_thread_are_nested_or_disjoint(trace)
    names = [event["args"]["name"] for event in trace["traceEvents"] if event["name"] == "process_name"]
    assert names == ["prompts: replica 0", "answers: replica 1", "answers: replica 2"]
    brought = [span for span in spans(trace) if span["tid"] >= FIRST_TRANSFER_TID]
    parts = result.requests.set_index("request_id")["part_kv_transfer_s"]
    assert {span["pid"] for span in brought} == {2, 3}
    assert {span["args"]["request"]: span["dur"] / US_PER_S for span in brought} == pytest.approx(
        parts.to_dict(), abs=1e-8
    )
    arrows = defaultdict(dict)
    for event in trace["traceEvents"]:
        if event["ph"] in ("s", "t", "f"):
            arrows[event["id"]][event["ph"]] = event
    assert len(arrows) == 60
    threads = defaultdict(list)
    for span in spans(trace):
        if "end" in span["args"] or "tokens" in span["args"]:
            threads[span["pid"], span["tid"]].append(span)
    for arrow in arrows.values():
        assert arrow["s"]["ts"] <= arrow["t"]["ts"] + NS <= arrow["f"]["ts"] + 2 * NS
        requests = set()
        for event in arrow.values():
            (inner,) = [
                span
                for span in threads[event["pid"], event["tid"]]
                if span["ts"] <= event["ts"] < span["ts"] + span["dur"] - NS / 2
            ]
            requests.add(inner["args"].get("request", inner["name"]))
        assert len(requests) == 1


def test_lanes_are_the_lowest_free_ones() -> None:
    assert assign_lanes([(0, 5), (1, 2), (2, 9), (3, 4), (5, 6)]) == [0, 1, 1, 2, 0]


def test_the_command_writes_it_into_the_run_folder(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(json.dumps(CONFIG))
    arguments = ["run", str(tmp_path / "c.yaml"), "--timeline", "--json", "--out", str(tmp_path / "out")]
    ran = CliRunner().invoke(main, arguments)
    assert ran.exit_code == 0
    assert ran.stderr.startswith("timeline: prefill is one span")
    assert read(tmp_path / "out" / "timeline.json.gz")["otherData"]["experiment"] == "crowded"
    ran = CliRunner().invoke(main, [*arguments, "--set", "sweep.seed=[0, 1]"])
    assert (ran.exit_code, ran.stderr) == (
        2,
        "--timeline: is of one run; pin the sweep's keys, as in --set seed=0\n",
    )
