"""SLOs written in milliseconds are noted; those that mean something are not."""

from __future__ import annotations

import pytest

import cbsim
from cbsim.results.run_notes import limit_notes

EXPERIMENT = {
    "workload": {
        "type": "synthetic",
        "num_requests": 5,
        "arrivals": {"type": "constant", "rate_per_s": 1.0},
        "prompt_tokens": {"type": "fixed", "value": 10},
        "output_tokens": {"type": "fixed", "value": 5},
    },
    "scheduler": {"type": "vllm", "max_tokens_per_step": 2048, "max_num_seqs": 256},
    "kv_cache": {"num_blocks": 100},
}


def notes(step_s: float, **slo: float) -> list[str]:
    cost_model = {"type": "constant", "step_s": step_s}
    return cbsim.run({**EXPERIMENT, "cost_model": cost_model, "slo": slo}).notes


def test_limits_in_milliseconds_are_noted_with_what_they_would_be() -> None:
    assert notes(0.02, tpot_s=40, ttft_s=500, itl_s=0.1) == [
        "slo.ttft_s = 500 is 500 seconds, 25,000 times the median of 20.0 ms: 500 ms would be 0.5",
        "slo.tpot_s = 40 is 40 seconds, 2,000 times the median of 20.0 ms: 40 ms would be 0.04",
    ]
    assert len(notes(0.02, itl_s=80, e2e_s=30_000)) == 2


@pytest.mark.parametrize("slo", [{"ttft_s": 99.0}, {"tpot_s": 1.9}, {"itl_s": 4.0}, {"e2e_s": 3600.0}, {}])
def test_usual_limits_are_not(slo: dict[str, float]) -> None:
    assert notes(0.02, **slo) == []


def test_nor_are_limits_of_a_service_so_slow_that_they_mean_something() -> None:
    assert notes(1.0, tpot_s=9.0) == []
    assert notes(20.0, ttft_s=120, itl_s=150) == []


def test_where_nothing_was_measured_nothing_is_said() -> None:
    assert limit_notes({"tpot_s": 40}, {"tpot_s": {"p50": None}}) == []
