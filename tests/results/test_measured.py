"""Figures without a warm-up, or of a window: as a naive reader of the whole record would make them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cbsim
from cbsim.base.errors import ConfigError
from cbsim.results.measured import MeasureConfig, gaps_of
from cbsim.results.result import Result
from cbsim.results.run_log import distinct_gaps
from cbsim.studies.capacity import Plan, capacity
from cbsim.studies.compare import compare
from cbsim.studies.experiment import Experiment
from cbsim.studies.run import make_workload, simulate

CONFIG: dict[str, Any] = {
    "workload": {
        "type": "synthetic",
        "num_requests": 120,
        "arrivals": {"type": "poisson", "rate_per_s": 12.0},
        "prompt_tokens": {"type": "uniform", "min": 20, "max": 300},
        "output_tokens": {"type": "uniform", "min": 1, "max": 40},
        "shared_prefix": {"num_tokens": 64, "num_groups": 2},
    },
    "scheduler": {"type": "vllm", "max_num_seqs": 8, "max_tokens_per_step": 128},
    "cost_model": {"type": "constant", "step_s": 0.01, "per_decode_s": 0.001, "per_prefill_token_s": 1e-5},
    "kv_cache": {"num_blocks": 90, "prefix_caching": True},
    "slo": {"ttft_s": {"each": 0.5, "p95": 1.0}},
    "output": {"batches": True},
}


def run(measure: dict[str, Any], **change: Any) -> Result:
    return cbsim.run(CONFIG | change | {"measure": measure})


def token_gaps(result: Result, names: set[str]) -> np.ndarray:
    """All gaps between the tokens of some requests, from the events, one token at a time."""
    emitted = result.events[result.events["event"] == "emitted"]
    gaps = []
    for name, rows in emitted.groupby("request_id"):
        if name in names:
            gaps += [after - before for before, after in pairwise(rows["time_s"])]
    return np.sort(np.array(gaps))


@pytest.mark.parametrize(
    "measure",
    [
        {"warmup_requests": 30},
        {"warmup_s": 3.0},
        {"from_s": 2.5, "to_s": 6.0},
        {"warmup_requests": 5, "to_s": 8.0},
    ],
)
def test_figures_are_those_of_the_requests_measured(measure: dict[str, Any]) -> None:
    result, whole = run(measure), run({})
    assert result.requests.equals(whole.requests)
    arrival_s = whole.requests["arrival_s"]
    from_s = max(arrival_s[0] + measure.get("warmup_s", 0.0), measure.get("from_s", 0.0))
    is_measured = (arrival_s >= from_s) & (arrival_s < measure.get("to_s", np.inf))
    is_measured &= np.arange(len(arrival_s)) >= measure.get("warmup_requests", 0)
    own, summary = whole.requests[is_measured], result.summary
    assert result.measured.equals(own)
    assert summary["num_requests"] == len(own) < 120
    for name in ("ttft_s", "tpot_s", "e2e_s", "queue_s"):
        assert summary[name]["p95"] == pytest.approx(own[name].quantile(0.95))
    gaps = token_gaps(whole, {*own["request_id"]})
    assert summary["itl_s"]["mean"] == pytest.approx(gaps.mean())
    assert summary["itl_s"]["p99"] == pytest.approx(np.quantile(gaps, 0.99))
    assert summary["itl_s"]["max"] == pytest.approx(gaps.max())
    assert result.itl["itl_s"].max() == pytest.approx(gaps.max())
    end_s = min(measure.get("to_s", np.inf), whole.requests["finished_at_s"].max())
    makespan_s = end_s - own["arrival_s"].iloc[0]
    assert summary["makespan_s"] == pytest.approx(makespan_s)
    assert summary["request_throughput_per_s"] == pytest.approx(len(own) / makespan_s)
    assert summary["slo_attainment"] == (own["ttft_s"] <= 0.5).mean()
    assert summary["slo_met"] == (
        own["ttft_s"].quantile(0.95) <= 1.0 and (own["ttft_s"] <= 0.5).mean() >= 0.99
    )
    assert summary["num_preemptions"] == own["num_preemptions"].sum()
    assert summary["prefix_hit_rate"] == own["num_cached_tokens"].sum() / own["num_prompt_tokens"].sum()
    steps = whole.steps[
        (whole.steps["start_s"] >= own["arrival_s"].iloc[0]) & (whole.steps["start_s"] < end_s)
    ]
    assert summary["num_steps"] == len(steps)
    assert summary["notes"][0].startswith(f"figures are about {len(own)} of 120 requests, which arrive from ")


@given(
    st.integers(0, 10_000),
    st.sampled_from(["vllm", "chunked_prefill", "continuous", "preemptive", "static"]),
    st.integers(60, 300),
)
@settings(max_examples=15, deadline=None)
def test_gaps_by_request_add_up_to_all_gaps(seed: int, scheduler: str, num_blocks: int) -> None:
    """Of every scheduler, preemptions included: what the slices say of each request is what the steps say."""
    change = {
        "seed": seed,
        "scheduler": {"type": scheduler, "max_num_seqs": 8},
        "kv_cache": {"num_blocks": num_blocks},
        "replicas": {"count": 2},
    }
    experiment = Experiment.from_mapping(CONFIG | change)
    log, _ = simulate(experiment, make_workload(experiment))
    assert log.slices is not None
    found = distinct_gaps(gaps_of(log.steps, log.slices, slice(0, len(log.requests["arrival_s"]))))
    expected = distinct_gaps(log.gaps)
    assert np.repeat(*found) == pytest.approx(np.repeat(*expected), abs=1e-9)


def test_nothing_is_left_out_by_default() -> None:
    result = run({})
    assert result.measured is result.requests
    assert not any("measure" in note for note in result.notes)
    assert not MeasureConfig()


def test_a_measure_that_leaves_nothing_says_so() -> None:
    result = run({"warmup_requests": 500})
    assert result.summary["num_requests"] == 0
    assert result.summary["slo_met"] is None
    assert result.notes[0] == "measure leaves out all of 120 requests: there are no figures"


def test_a_window_is_one() -> None:
    with pytest.raises(ConfigError, match="to_s: got 1; allowed: more than from_s, 2"):
        Experiment.from_mapping(CONFIG | {"measure": {"from_s": 2.0, "to_s": 1.0}})


def test_comparisons_pair_the_requests_measured() -> None:
    first, second = run({"warmup_requests": 20}), run({"warmup_requests": 20}, seed=0)
    assert compare(first, second).num_pairs == 100


def test_a_capacity_leaves_out_its_first_requests() -> None:
    change = {"output": {}, "slo": {"ttft_s": 1.0}, "measure": {"warmup_requests": 40}}
    found = capacity(CONFIG | change, Plan(share=0.9, num_replicates=2, tolerance=0.5))
    assert (found.curve["num_requests"] == 80).all()
    with pytest.raises(ConfigError, match="capacity can leave out warmup_requests"):
        capacity(CONFIG | {"measure": {"warmup_s": 3.0}})
