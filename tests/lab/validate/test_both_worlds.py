"""Both worlds on a tiny model: the same arrivals, the same decisions where step times are the same."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

pytest.importorskip("torch")

from cbsim.lab.validate.both_worlds import AsTaken, validate_live
from cbsim.studies.experiment import Experiment
from tests.lab.kernels.references import load_model
from tests.simulation import ListedWorkload


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


def test_an_idle_engine_takes_requests_when_it_wakes():
    """Steps from 1.5 to 2 and from 5.25 to 6: who comes at 1 or 5 waits for the engine to wake, who comes at
    1.75 for nobody."""
    arrivals = {"a": 1.0, "b": 1.75, "c": 5.0}
    rows = [
        {"request_id": name, "arrival_s": at_s, "num_prompt_tokens": 1, "num_output_tokens": 1}
        for name, at_s in arrivals.items()
    ]
    live: Any = SimpleNamespace(
        requests=pd.DataFrame({"request_id": list(arrivals), "arrival_s": list(arrivals.values())}),
        steps=pd.DataFrame({"start_s": [1.5, 5.25], "duration_s": [0.5, 0.75]}),
    )
    taken = [request.arrival_s for request in AsTaken(ListedWorkload(rows), live).requests()]
    assert taken == [1.5, 1.75, 5.25]
