"""What prompts hold, by ids of hash blocks or of tokens: in a file of their own, in a trace, in a log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from cbsim.base.errors import WorkloadError
from cbsim.workload.prompts import read_prompts

IDS, LENGTHS = ["a", "b"], [40, 33]
ROWS = [
    {"request_id": "a", "num_prompt_tokens": 40, "hash_ids": [7, 8]},
    {"request_id": "b", "num_prompt_tokens": 33, "hash_ids": [7, 9]},
]
SEGMENTS = [
    (("h:7", 16), ("h:8", 16), ("p:r0", 8)),
    (("h:7", 16), ("h:9", 16), ("p:r1", 1)),
]


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def problems(path: Path, block_tokens: int | None = None) -> list[str]:
    with pytest.raises(WorkloadError) as caught:
        read_prompts(path, IDS, LENGTHS, block_tokens)
    return [line.replace(str(path), "FILE") for line in caught.value.problems]


def test_blocks_by_their_number(tmp_path):
    """As many ids as prompts have whole blocks of 16."""
    rows = [*reversed(ROWS), {"request_id": "c", "hash_ids": [1, 2, 3, 4, 5, 6]}]
    found = read_prompts(write(tmp_path / "p.jsonl", *rows), [*IDS, "c"], [*LENGTHS, 100])
    assert found.segments.tolist()[:2] == SEGMENTS
    assert found.notes == (
        "p.jsonl: one of hash_ids stands for 16 prompt tokens (by their number; hash_block_tokens sets it)",
    )


@pytest.mark.parametrize("how", ["column", "setting", "parquet"])
def test_blocks_of_a_size_that_is_told(tmp_path, how):
    told = {} if how == "setting" else {"block_tokens": 16}
    rows = [row | told for row in ROWS]
    path = write(tmp_path / "p", *rows)
    if how == "parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    found = read_prompts(path, IDS, LENGTHS, 16 if how == "setting" else None)
    assert found.segments.tolist() == SEGMENTS
    assert not found.notes


@pytest.mark.parametrize("column", ["token_ids", "prompt_token_ids", "input_ids", "input_tok_ids"])
def test_equal_leading_tokens_are_shared(tmp_path, column):
    tokens = {"a": list(range(40)), "b": [*range(32), 99]}
    rows = [{"request_id": name, column: ids} for name, ids in tokens.items()]
    first, second = read_prompts(write(tmp_path / "p.jsonl", *rows), IDS, LENGTHS).segments
    assert [num for _, num in first] == [16, 16, 8]
    assert first[:2] == second[:2]
    assert second[2][0] != first[2][0]


def test_segments_as_in_traces(tmp_path):
    rows = [{"request_id": "a", "prompt": [["system", 40]]}, {"request_id": "b", "prompt": [["system", 33]]}]
    found = read_prompts(write(tmp_path / "p.jsonl", *rows), IDS, LENGTHS)
    assert found.segments.tolist() == [(("system", 40),), (("system", 33),)]
    rows[1]["prompt"] = [["system", 3]]
    told = "FILE:2: prompt: got segments of 3 tokens; allowed: num_prompt_tokens, 33"
    assert problems(write(tmp_path / "p.jsonl", *rows)) == [told]


def test_requests_without_a_prompt_are_counted(tmp_path):
    found = read_prompts(write(tmp_path / "p.jsonl", ROWS[1], {"request_id": "z"}), IDS, LENGTHS, 16)
    assert found.segments.tolist() == [None, SEGMENTS[1]]
    assert found.notes == ("p.jsonl: 1 of 2 requests have no prompt there: they share nothing",)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"request_id": "a"}, "request_id: got a, as in line 1; allowed: each id once"),
        ({"request_id": None}, "request_id: got nothing; allowed: text"),
        (
            {"num_prompt_tokens": 34},
            "num_prompt_tokens: got 34; allowed: 33, as the log has for b",
        ),
        (
            {"hash_ids": [1, 2, 3, 4]},
            "hash_ids: got 4 ids; allowed: at most 3 for 33 prompt tokens in blocks of 16",
        ),
        ({"hash_ids": [1.5]}, "hash_ids: got [1.5]; allowed: a list of whole numbers"),
        (
            {"block_tokens": 32},
            "block_tokens: got 32; allowed: 16, hash_block_tokens of the workload",
        ),
    ],
)
def test_mistakes_are_told_by_line_and_key(tmp_path, row, told):
    rows = [row_of | {"block_tokens": 16} for row_of in ROWS]
    assert problems(write(tmp_path / "p.jsonl", rows[0], rows[1] | row), 16) == [f"FILE:2: {told}"]


def test_too_many_tokens(tmp_path):
    path = write(tmp_path / "p.jsonl", {"request_id": "b", "token_ids": list(range(34))})
    assert problems(path) == ["FILE:1: token_ids: got 34 token ids; allowed: at most 33, the prompt's tokens"]


def test_blocks_that_agree_on_no_size(tmp_path):
    rows = [row | {"block_tokens": size} for row, size in zip(ROWS, (16, 8), strict=True)]
    told = "FILE:2: block_tokens: got 8; allowed: 16, as in the rows before"
    assert problems(write(tmp_path / "p.jsonl", *rows)) == [told]


def test_files_that_hold_no_prompts(tmp_path):
    path = tmp_path / "p.jsonl"
    (line,) = problems(write(path, {"request_id": "a", "text": "hello"}))
    assert line.startswith("FILE:1: no column for the content of a prompt: got columns request_id, text; ")
    (line,) = problems(write(path, {"hash_ids": [1]}))
    assert line.startswith(
        "FILE:1: no column for the request of a prompt: got columns hash_ids; allowed: one"
    )
    assert problems(write(path)) == ["FILE: got an empty file; allowed: a CSV header, JSON lines or Parquet"]
    assert problems(write(path, {"request_id": "c", "hash_ids": [1]})) == [
        "FILE: request_id: no request of the log is here: got c, ...; allowed: a, ..."
    ]
    path.write_text("{oops\n")
    assert problems(path) == ["FILE:1: got {oops; allowed: one whole JSON object"]
    (line,) = problems(tmp_path / "nowhere")
    assert line.startswith("FILE: can't be read")


@pytest.mark.parametrize(
    "row",
    [
        {"arrival_s": 0.0, "num_prompt_tokens": 40, "num_output_tokens": 1},
        {"arrival_time": 5.0, "prompt_tokens": 40, "completion_tokens": 1, "id": "x"},
    ],
)
def test_a_trace_and_a_log_may_hold_them(trace, row):
    line = json.dumps(row | {"hash_ids": [7, 8]}) + "\n"
    (request,) = trace("t.jsonl", line, hash_block_tokens=16).requests()
    assert request.prompt == SEGMENTS[0]
    (request,) = trace("u.jsonl", json.dumps(row | {"prompt_token_ids": list(range(40))}) + "\n").requests()
    assert [num for _, num in request.prompt] == [16, 16, 8]
