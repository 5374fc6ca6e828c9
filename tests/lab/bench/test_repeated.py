"""A trace repeated: every request of every lap at its instant, under a name of its own."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbsim.base.errors import WorkloadError
from cbsim.lab.bench.scaling import RepeatedTrace
from cbsim.workload.request import Request
from cbsim.workload.trace import TraceWorkload

ROWS = [
    {"request_id": "a", "arrival_s": 1.0, "num_prompt_tokens": 20, "num_output_tokens": 3},
    {"request_id": "b", "arrival_s": 1.5, "num_prompt_tokens": 30, "num_output_tokens": 4},
    {"request_id": "c", "arrival_s": 4.0, "num_prompt_tokens": 40, "num_output_tokens": 5},
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def repeated(path: Path, **config: Any) -> RepeatedTrace:
    return RepeatedTrace(RepeatedTrace.Config(path=str(path), **config), seed=0, folder=Path())


def told(request: Request) -> tuple[Any, ...]:
    return (
        request.request_id,
        pytest.approx(request.arrival_s),
        request.num_prompt_tokens,
        request.num_output_tokens,
        request.session_id,
        request.prompt,
    )


def test_laps_follow_each_other_at_the_traces_own_pace(tmp_path: Path) -> None:
    """Three seconds from the first to the last, 1.5 on average from one to the next: a lap of 4.5 s."""
    workload = repeated(write(tmp_path / "t.jsonl", ROWS), num_requests=8)
    found = [(request.request_id, request.arrival_s) for request in workload.requests()]
    assert found == [
        ("a", 1.0),
        ("b", 1.5),
        ("c", 4.0),
        ("a#2", 5.5),
        ("b#2", 6.0),
        ("c#2", 8.5),
        ("a#3", 10.0),
        ("b#3", 10.5),
    ]
    assert workload.num_requests() == 8
    assert workload.notes() == ["trace replayed 2.67 times"]


@settings(max_examples=40, deadline=None)
@given(
    start_s=st.sampled_from([0.0, 1.2]),
    limit=st.sampled_from([None, 2]),
    rate_scale=st.sampled_from([1.0, 2.5]),
    max_prompt_tokens=st.sampled_from([None, 25]),
    num_requests=st.integers(1, 11),
)
def test_a_lap_is_the_trace_as_it_would_be_replayed(
    tmp_path_factory: pytest.TempPathFactory, num_requests: int, **config: Any
) -> None:
    path = write(tmp_path_factory.mktemp("trace") / "t.jsonl", ROWS)
    source = TraceWorkload(TraceWorkload.Config(path=str(path), **config), seed=0, folder=Path())
    once = [told(request) for request in source.requests()]
    laps = [told(request) for request in repeated(path, num_requests=num_requests, **config).requests()]
    assert laps[: len(once)] == once[:num_requests]
    assert len(laps) == num_requests
    for number, (name, _, *rest) in enumerate(laps):
        lap, place = divmod(number, len(once))
        assert name == once[place][0] + (f"#{lap + 1}" if lap else "")
        assert rest == list(once[place][2:])
    arrivals = [
        request.arrival_s for request in repeated(path, num_requests=num_requests, **config).requests()
    ]
    assert arrivals == sorted(arrivals)


def test_prompts_share_what_they_share_within_a_lap_and_nothing_with_another(tmp_path: Path) -> None:
    rows = [
        {**ROWS[0], "session_id": "s", "prompt": [["system", 15], ["mine", 5]]},
        {**ROWS[1], "session_id": "s", "prompt": [["system", 15], ["o:a", 3], ["more", 12]]},
        {**ROWS[2], "prompt": None},
    ]
    found = list(repeated(write(tmp_path / "t.jsonl", rows), num_requests=6).requests())
    assert found[3].prompt == (("system#2", 15), ("mine#2", 5))
    assert found[4].prompt == (("system#2", 15), ("o:a#2", 3), ("more#2", 12))
    assert found[3].request_id == "a#2"
    assert [request.session_id for request in found] == ["s", "s", None, "s#2", "s#2", None]
    assert found[5].prompt is None


def test_rows_without_names_get_one_a_lap(tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"
    trace.write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n0,1,1\n0,2,1\n")
    found = list(repeated(trace, num_requests=5).requests())
    assert [request.request_id for request in found] == ["r0", "r1", "r0#2", "r1#2", "r0#3"]
    assert {request.arrival_s for request in found} == {0.0}


def test_an_empty_window_is_told_as_of_any_trace(tmp_path: Path) -> None:
    workload = repeated(write(tmp_path / "t.jsonl", ROWS), num_requests=5, start_s=9.0)
    with pytest.raises(WorkloadError, match="got no requests from start_s = 9"):
        list(itertools.islice(workload.requests(), 1))
