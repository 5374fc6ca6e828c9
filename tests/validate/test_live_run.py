"""Both worlds on a tiny model: the same arrivals, the same decisions where step times are the same."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from cbsim.experiment import Experiment
from cbsim.validate.live_run import validate_live
from tests.kernels.references import load_model


@pytest.mark.parametrize("scheduler", ["vllm", "chunked_prefill"])
def test_decisions_are_the_simulated_ones_when_step_times_are_replayed(scheduler):
    experiment = Experiment.from_mapping(
        {
            "model": load_model("tiny").model_dump(),
            "workload": {
                "type": "synthetic",
                "num_requests": 12,
                "arrivals": {"type": "poisson", "rate_per_s": 20.0},
                "prompt_tokens": {"type": "uniform", "min": 5, "max": 90},
                "output_tokens": {"type": "uniform", "min": 1, "max": 12},
            },
            "scheduler": {"type": scheduler, "max_num_seqs": 4, "max_tokens_per_step": 64},
            "kv_cache": {"num_blocks": 64, "block_size": 16},
            "cost_model": {"type": "constant", "step_s": 0.004},
        }
    )
    both = validate_live(experiment, device="cpu")
    assert both.replayed_difference is None
    assert len(both.live.requests) == len(both.simulated.requests) == 12
    assert sum(times.num_steps for times in both.steps) == len(both.live.steps)
    assert {figure.name for figure in both.figures} >= {"ttft_s.mean", "itl_s.p99", "e2e_s.p50"}
