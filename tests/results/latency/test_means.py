"""Means over all requests and over the slowest, and what they are in a summary."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

import cbsim
from cbsim.results.latency import PARTS, TTFT_PARTS, mean_parts
from cbsim.results.latency.parts import slowest
from cbsim.results.metrics import flatten
from tests.run_logs import make_result, paper_log

RUN = {
    "name": "parts",
    "model": "llama-3-8b",
    "gpu": "h200",
    "engine": "reference",
    "workload": {
        "type": "synthetic",
        "num_requests": 120,
        "arrivals": {"type": "poisson", "rate_per_s": 30.0},
        "prompt_tokens": {"type": "fixed", "value": 1000},
        "output_tokens": {"type": "uniform", "min": 20, "max": 80},
    },
    "scheduler": {"type": "preemptive"},
    "kv_cache": {"num_blocks": 1000},
    "cost_model": {"type": "roofline", "host_step_s": 0.001},
}


@pytest.fixture(scope="module")
def result() -> cbsim.Result:
    return cbsim.run(RUN)


def test_the_slowest_are_a_hundredth_rounded_up() -> None:
    latency_s = np.array([3.0, math.nan, 5.0, 1.0, 5.0])
    assert slowest(latency_s).tolist() == [2]
    assert slowest(latency_s, 0.5).tolist() == [2, 4]
    assert slowest(np.array([math.nan])).tolist() == []
    assert [len(slowest(np.arange(float(number)))) for number in (1, 100, 101, 700, 1000)] == [1, 1, 2, 7, 10]


def test_means_by_hand() -> None:
    """Two requests with a first token, one of them finished; the slowest is the second."""
    ttft, e2e = np.array([1.0, 3.0, math.nan]), np.array([2.0, math.nan, math.nan])
    parts = dict.fromkeys(TTFT_PARTS.values(), ttft * 0) | dict.fromkeys(PARTS.values(), e2e * 0)
    parts |= {"ttft_part_queue_s": ttft, "part_decode_s": e2e}
    told = mean_parts({"ttft_s": ttft, "e2e_s": e2e}, parts)
    assert told["ttft_s"]["mean"] == {f"{name}_s": 0.0 for name in TTFT_PARTS} | {"queue_s": 2.0}
    assert told["ttft_s"]["slowest"]["queue_s"] == 3.0
    assert told["e2e_s"]["mean"]["decode_s"] == told["e2e_s"]["slowest"]["decode_s"] == 2.0
    nobody = mean_parts(
        {"ttft_s": ttft[2:], "e2e_s": e2e[2:]}, {name: part[2:] for name, part in parts.items()}
    )
    assert set(nobody["e2e_s"]["mean"].values()) == {None}


def test_the_summary_says_what_the_requests_do(result: cbsim.Result) -> None:
    requests, parts = result.requests, result.summary["parts"]
    for latency, names in (("ttft_s", TTFT_PARTS), ("e2e_s", PARTS)):
        assert list(parts[latency]["mean"]) == [f"{name}_s" for name in names]
        tail = requests.sort_values(latency).tail(2)
        for name, column in names.items():
            assert parts[latency]["mean"][f"{name}_s"] == pytest.approx(requests[column].mean())
            assert parts[latency]["slowest"][f"{name}_s"] == pytest.approx(tail[column].mean())
        assert sum(parts[latency]["mean"].values()) == pytest.approx(result.summary[latency]["mean"])
    assert parts["e2e_s"]["mean"]["preempted_s"] > 0
    assert parts["e2e_s"]["mean"]["host_s"] > 0
    assert parts["ttft_s"]["mean"]["no_kv_s"] > 0
    flat = flatten(result.summary)
    assert flat["parts.e2e_s.slowest.decode_s"] == parts["e2e_s"]["slowest"]["decode_s"]
    assert not [name for name, value in flat.items() if isinstance(value, dict)]


def test_a_run_folder_keeps_the_parts(result: cbsim.Result, tmp_path: Path) -> None:
    loaded = cbsim.load_run(result.save(tmp_path / "run"))
    columns = [*PARTS.values(), *TTFT_PARTS.values()]
    assert loaded.requests[columns].equals(result.requests[columns])
    assert (loaded.requests[list(PARTS.values())].sum(axis=1) - loaded.requests["e2e_s"]).abs().max() < 1e-9
    assert set(loaded.steps["waiting_for"]) == {0, 1, 3}
    assert loaded.steps["transfer_s"].eq(0).all()
    assert loaded.summary["parts"] == result.summary["parts"]


def test_a_record_without_slices_has_no_parts() -> None:
    """As of a live run, of which nobody knows what a step would have taken with less in it."""
    result = make_result(paper_log())
    assert not [name for name in result.requests if "part_" in name]
    assert "waiting_for" not in result.steps
    assert "parts" not in result.summary
