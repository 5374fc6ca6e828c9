"""Logs of servers: fields recognised, clocks brought together, every mistake told in a line of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cbsim
from cbsim.base.errors import WorkloadError
from cbsim.lab.validate.server_log import read_server_log
from tests.lab.validate.logs import SETTINGS
from tests.workload.benchmark_files import MEASURED, RUN

VLLM_ROWS = [
    {
        "request_id": f"bench-{index}",
        "input_toks": 100 + index,
        "output_toks": 3,
        "arrival_time": 1_777_000_000.0 + index,
        "queued_ts": 5000.0 + index + 0.01 * index,
        "scheduled_ts": 5000.1 + index,
        "first_token_ts": 5000.5 + index,
        "last_token_ts": 5000.7 + index,
    }
    for index in range(3)
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def problems(path: Path, columns: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(WorkloadError) as caught:
        read_server_log(path, columns)
    return [line.replace(str(path), "LOG") for line in caught.value.problems]


def test_vllm_names_and_two_clocks(tmp_path):
    log = read_server_log(write(tmp_path / "log.jsonl", VLLM_ROWS))
    assert log.request_id == ("bench-0", "bench-1", "bench-2")
    assert log.sent_s.tolist() == [0.0, 1.0, 2.0]
    assert log.queued_s == pytest.approx([0.0, 1.01, 2.02])
    assert log.first_token_s == pytest.approx([0.5, 1.5, 2.5])
    assert log.latencies("sent")["ttft_s"] == pytest.approx([0.5, 0.5, 0.5])
    assert log.latencies("queued")["ttft_s"] == pytest.approx([0.5, 0.49, 0.48])
    assert log.latencies("sent")["tpot_s"] == pytest.approx([0.1, 0.1, 0.1])
    assert log.latencies("sent")["e2e_s"] == pytest.approx([0.7, 0.7, 0.7])


def test_own_names_of_columns_in_csv(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("in,out,came,began,done\n10,2,7.5,8,9\n20,1,7,8,8\n", encoding="utf-8")
    named = {"prompt_tokens": "in", "output_tokens": "out", "arrival": "came", "first_token": "began"}
    log = read_server_log(path, named | {"last_token": "done"})
    assert log.num_prompt_tokens.tolist() == [20, 10]
    assert log.sent_s.tolist() == [0.0, 0.5]
    assert np.isnan(log.latencies("sent")["tpot_s"]).tolist() == [True, False]
    with pytest.raises(WorkloadError, match="has no column queued_s or queued_ts; allowed: sent"):
        log.workload("queued")


def test_a_run_of_cbsim_is_a_log_too(tmp_path):
    result = cbsim.run({**SETTINGS, "output": {"batches": True}}, out=tmp_path / "run")
    log = read_server_log(tmp_path / "run")
    assert len(log) == 60
    assert log.token_times_s is not None
    assert log.latencies("sent")["ttft_s"].mean() == pytest.approx(result.summary["ttft_s"]["mean"])
    assert log.latencies("sent")["itl_s"].mean() == pytest.approx(result.summary["itl_s"]["mean"])


def test_mistakes_are_told_by_line(tmp_path):
    rows = [dict(row) for row in VLLM_ROWS]
    rows[0]["output_toks"] = -1
    rows[1]["first_token_ts"] = "soon"
    rows[2]["input_toks"] = 3.5
    assert problems(write(tmp_path / "log.jsonl", rows)) == [
        "LOG:1: output_toks: got -1; allowed: a whole number from 1 to 100,000,000",
        "LOG:2: first_token_ts: got soon; allowed: seconds",
        "LOG:3: input_toks: got 3.5; allowed: a whole number from 1 to 100,000,000",
    ]


def test_times_out_of_order(tmp_path):
    rows = [dict(row) for row in VLLM_ROWS]
    rows[1]["last_token_ts"] = rows[1]["first_token_ts"] - 0.1
    expected = ["LOG:2: expected arrival <= first token <= last token"]
    assert problems(write(tmp_path / "log.jsonl", rows)) == expected


@pytest.mark.parametrize(
    ("times", "problem"),
    [
        ([1.0, 2.0, 3.0, 4.0], "expected a list of at most 3 times, one for each output token"),
        ([1.0, 3.0, 2.0], "got [1.0, 3.0, 2.0]; allowed: a list of rising seconds"),
        ("soon", "got soon; allowed: a list of rising seconds"),
    ],
)
def test_times_of_tokens(tmp_path, times, problem):
    first = VLLM_ROWS[0]["first_token_ts"]
    rows = [row | {"token_times": [first, first + 0.1, first + 0.2]} for row in VLLM_ROWS[:2]]
    log = read_server_log(write(tmp_path / "log.jsonl", rows))
    assert log.token_times_s is not None
    assert log.token_times_s[1] == pytest.approx([0.5, 0.6, 0.7])
    rows[1]["token_times"] = times
    assert problems(write(tmp_path / "log.jsonl", rows)) == [f"LOG:2: token_times: {problem}"]


def test_names_given_twice(tmp_path):
    rows = [*VLLM_ROWS, VLLM_ROWS[0]]
    expected = ["LOG:4: request_id 'bench-0' stands in line 1 too"]
    assert problems(write(tmp_path / "log.jsonl", rows)) == expected


def test_missing_and_unknown_columns(tmp_path):
    rows = [{name: value for name, value in row.items() if name != "last_token_ts"} for row in VLLM_ROWS]
    path = write(tmp_path / "log.jsonl", rows)
    (line,) = problems(path)
    assert line.startswith("LOG: no column for last_token: expected one of last_token_at_s, finished_at_s")
    assert line.endswith("; name yours by --column last_token=NAME")
    (line,) = problems(path, {"last_token": "first_token_tss"})
    assert line.endswith(
        "--column last_token=first_token_tss: no such column; did you mean 'first_token_ts'?"
    )
    assert problems(path, {"last_tokn": "x"}) == ["--column: unknown 'last_tokn'; did you mean 'last_token'?"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "LOG: got an empty file; allowed: a CSV header, JSON lines or Parquet"),
        ("prompt_tokens,output_tokens,arrival_s,first_token_s,last_token_s\n", "LOG: holds no requests"),
        ("{\n", "LOG:1: got {; allowed: one whole JSON object"),
        ("[1]\n", "LOG:1: got a JSON array; allowed: one JSON object a line"),
    ],
)
def test_files_that_are_no_logs(tmp_path, text, message):
    path = tmp_path / "log.jsonl"
    path.write_text(text, encoding="utf-8")
    assert problems(path) == [message]


@pytest.mark.parametrize("writer", MEASURED)
def test_results_of_a_benchmark_are_a_log(tmp_path, writer):
    path = tmp_path / "results"
    path.write_text(MEASURED[writer], encoding="utf-8")
    log = read_server_log(path)
    assert log.num_prompt_tokens.tolist() == [10, 20]
    assert log.num_output_tokens.tolist() == [3, 2]
    found = log.latencies("sent")
    assert log.sent_s == pytest.approx([0.0, 1.0], abs=1e-6)
    assert found["ttft_s"] == pytest.approx([0.5, 0.25], abs=1e-6)
    assert found["e2e_s"] == pytest.approx([0.8, 0.5], abs=1e-6)
    assert found["tpot_s"] == pytest.approx([0.15, 0.25], abs=1e-6)
    if not writer.startswith(("guidellm", "OpenTelemetry")):
        assert found["itl_s"] == pytest.approx([0.1, 0.2, 0.25], abs=1e-6)
    if writer != "a server's log":
        assert log.notes[0].startswith("read as ")
    assert log.notes[-1] == "failed requests left out: 1"


def test_failed_requests_alone(tmp_path):
    path = tmp_path / "log.json"
    path.write_text(json.dumps(RUN | {"errors": ["no"] * 3}), encoding="utf-8")
    assert problems(path) == ["LOG: holds 3 failed requests alone"]


def test_chunks_of_several_tokens(tmp_path):
    first = VLLM_ROWS[0]["first_token_ts"]
    times = ([first, first + 0.1, first + 0.2], [first + 1, first + 1.2])
    rows = [row | {"token_times": each} for row, each in zip(VLLM_ROWS, times, strict=False)]
    log = read_server_log(write(tmp_path / "log.jsonl", rows))
    assert log.token_times_s is None
    assert log.latencies("sent")["itl_s"] == pytest.approx([0.1, 0.1])
    told = "1 of 2 answers have times of chunks, not of each token: ITL is of the others"
    assert log.notes[-1] == told
    run = RUN | {"itls": [[0.3], [], []]}
    (tmp_path / "run.json").write_text(json.dumps(run), encoding="utf-8")
    log = read_server_log(tmp_path / "run.json")
    assert "itl_s" not in log.latencies("sent")
    assert log.notes[-1] == "2 of 2 answers have times of chunks, not of each token: ITL is not compared"


def test_dates_in_milliseconds(tmp_path):
    row = {"prompt_tokens": 10, "output_tokens": 3, "arrival_time": 1_750_000_000_000}
    row |= {"first_token_time": 1_750_000_000_500, "last_token_ts": 1_750_000_000_800}
    later = {name: value + 2000 if value > 10 else value for name, value in row.items()}
    log = read_server_log(write(tmp_path / "log.jsonl", [row, later]))
    assert log.latencies("sent")["ttft_s"] == pytest.approx([0.5, 0.5])
    assert log.sent_s == pytest.approx([0.0, 2.0])
    assert log.notes == ("arrival_time, first_token_time, last_token_ts: in ms since 1970, by their size",)
