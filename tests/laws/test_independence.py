"""Same seed, same bytes; runs that don't touch each other; arrivals that no scheduler changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import cbsim
from cbsim.results.run_log import RunLog
from cbsim.schedulers import SCHEDULERS
from cbsim.studies.experiment import Experiment
from cbsim.studies.run import make_workload, simulate
from cbsim.testing import differences

NUM_REQUESTS = 300


def experiment(scheduler: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "name": "independence",
        "seed": 5,
        "model": "llama-3-8b",
        "gpu": "h200",
        "workload": {
            "type": "synthetic",
            "num_requests": NUM_REQUESTS,
            "arrivals": {"type": "gamma", "rate_per_s": 20.0, "cv": 2.0},
            "prompt_tokens": {"type": "lognormal", "median": 400, "sigma": 1.0, "max": 4000},
            "output_tokens": {"type": "lognormal", "median": 30, "sigma": 0.8, "max": 200},
        },
        "scheduler": scheduler,
        "kv_cache": {"num_blocks": 1600},
        "cost_model": {"type": "constant", "step_s": 0.01, "per_prefill_token_s": 2e-5, "per_decode_s": 1e-4},
        "replicas": {"count": 2, "router": "random"},
        **changes,
    }


@pytest.mark.parametrize("kind", SCHEDULERS.builtin_names())
def test_the_same_seed_gives_the_same_bytes(kind: str, tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        cbsim.run(experiment({"type": kind}), out=folder)
    for name in ("requests.parquet", "steps.parquet", "events.parquet", "config.yaml"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name


def test_another_seed_gives_another_run() -> None:
    one, other = (cbsim.run(experiment({"type": "vllm"}, seed=seed)) for seed in (5, 6))
    assert not one.requests["arrival_s"].equals(other.requests["arrival_s"])


def test_no_scheduler_changes_what_arrives() -> None:
    columns = ["request_id", "arrival_s", "num_prompt_tokens", "num_output_tokens", "replica"]
    frames = [cbsim.run(experiment({"type": kind})).requests[columns] for kind in SCHEDULERS.builtin_names()]
    for frame in frames[1:]:
        assert frame.equals(frames[0])


def test_no_router_changes_what_arrives() -> None:
    columns = ["request_id", "arrival_s", "num_prompt_tokens", "num_output_tokens"]
    frames = [
        cbsim.run(experiment({"type": "vllm"}, replicas={"count": 2, "router": router})).requests[columns]
        for router in ("random", "round_robin", "least_outstanding")
    ]
    for frame in frames[1:]:
        assert frame.equals(frames[0])


@pytest.mark.parametrize("engine", ["interpreted", "compiled"])
def test_a_run_inside_a_run_touches_neither(engine: str) -> None:
    """A second simulation runs to its end in the midst of the first, from its progress callback."""
    outer = Experiment.from_mapping(experiment({"type": "preemptive"}, engine=engine))
    inner = Experiment.from_mapping(experiment({"type": "vllm"}, engine=engine, seed=9))
    outer_alone, inner_alone = run(outer), run(inner)
    inner_logs = []

    def interrupt(num_arrived: int, now: float) -> None:
        inner_logs.append(run(inner))

    outer_log, _ = simulate(outer, make_workload(outer), interrupt)
    assert inner_logs
    assert differences(outer_log, outer_alone) == []
    for inner_log in inner_logs:
        assert differences(inner_log, inner_alone) == []


def run(one: Experiment) -> RunLog:
    return simulate(one, make_workload(one))[0]
