"""One server with Poisson arrivals: waiting times against theory, within intervals computed from the runs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import cbsim
from cbsim.config.section import ComponentConfig
from cbsim.cost import CostModel, StepShape
from cbsim.results.result import Result
from cbsim.specs import GpuSpec, ModelSpec

RATE_PER_S = 0.5
"""With a mean service of 1 s: utilization 0.5."""
NUM_REQUESTS = 2500
NUM_WARMUP = 300
SEEDS = range(12)
T_999 = 4.437
"""Student's t for 11 degrees of freedom, 99.9 % two-sided."""
ONE_SERVER = {
    "static": {"type": "static", "max_num_seqs": 1},
    "continuous": {"type": "continuous", "max_num_seqs": 1},
    "continuous, mixed": {"type": "continuous", "max_num_seqs": 1, "prefill_first": False},
    "chunked_prefill": {"type": "chunked_prefill", "max_num_seqs": 1},
    "preemptive": {"type": "preemptive", "max_num_seqs": 1},
    "vllm": {"type": "vllm", "max_num_seqs": 1, "async_scheduling": False},
}


class ExponentialConfig(ComponentConfig):
    """Settings of `ExponentialCost`."""

    seed: int


class ExponentialCost(CostModel):
    """Every step takes a random time, exponential with mean 1 s."""

    Config = ExponentialConfig
    is_deterministic = False

    def __init__(
        self, config: ExponentialConfig, model: ModelSpec, gpu: GpuSpec, tensor_parallel: int = 1
    ) -> None:
        super().__init__(config, model, gpu, tensor_parallel)
        self._generator = np.random.default_rng([config.seed, 1])

    def step_s(self, shape: StepShape) -> float:
        return float(self._generator.exponential())


def run(
    seed: int,
    *,
    scheduler: dict[str, Any] = ONE_SERVER["vllm"],
    cost_model: dict[str, Any] | None = None,
    output: dict[str, Any] | None = None,
    num_requests: int = NUM_REQUESTS,
    rate_per_s: float = RATE_PER_S,
    **experiment: Any,
) -> Result:
    return cbsim.run(
        {
            "seed": seed,
            "model": "tiny",
            "gpu": "h200",
            "workload": {
                "type": "synthetic",
                "num_requests": num_requests,
                "arrivals": {"type": "poisson", "rate_per_s": rate_per_s},
                "prompt_tokens": {"type": "fixed", "value": 1},
                "output_tokens": output or {"type": "fixed", "value": 1},
            },
            "scheduler": scheduler,
            "kv_cache": {"num_blocks": 1000},
            "cost_model": cost_model or {"type": "constant", "step_s": 1.0},
            "engine": "compiled",
            **experiment,
        }
    )


def mean_wait_s(result: Result) -> float:
    return float(result.requests["queue_s"].to_numpy(float)[NUM_WARMUP:].mean())


def assert_mean(samples: list[float], theory: float, *, not_this: float) -> None:
    """The 99.9 % interval of independent runs holds the theory, and is too narrow to hold another one."""
    half_width = T_999 * float(np.std(samples, ddof=1)) / math.sqrt(len(samples))
    mean = float(np.mean(samples))
    assert abs(mean - theory) <= half_width, f"{mean} +- {half_width}, theory says {theory}"
    assert abs(mean - not_this) > half_width, f"{mean} +- {half_width} would also be {not_this}"


def test_deterministic_service_waits_as_m_d_1() -> None:
    # Pollaczek-Khinchine: W = rho S / (2 (1 - rho)).
    samples = [mean_wait_s(run(seed)) for seed in SEEDS]
    assert_mean(samples, 0.5, not_this=1.0)


def test_exponential_service_waits_as_m_m_1() -> None:
    # W = rho S / (1 - rho), and an arrival finds the server idle with probability 1 - rho.
    name = f"{__name__}:ExponentialCost"
    runs = [run(seed, cost_model={"type": name, "seed": seed}) for seed in SEEDS]
    assert_mean([mean_wait_s(result) for result in runs], 1.0, not_this=0.5)
    idle = [float((result.requests["queue_s"].to_numpy(float)[NUM_WARMUP:] == 0).mean()) for result in runs]
    assert_mean(idle, 0.5, not_this=0.45)


def test_answers_of_two_lengths_wait_as_m_g_1() -> None:
    # An answer of n tokens takes n steps: E[S] = 2, E[S^2] = (1 + 9) / 2, W = rate E[S^2] / (2 (1 - rho)).
    rate_per_s = 0.25
    output = {"type": "empirical", "values": [1, 3]}
    samples = [mean_wait_s(run(seed, output=output, rate_per_s=rate_per_s)) for seed in SEEDS]
    assert_mean(samples, rate_per_s * 5.0 / (2 * 0.5), not_this=rate_per_s * 4.0 / (2 * 0.5))


def test_random_routing_splits_a_poisson_stream_into_poisson_streams() -> None:
    # Two servers at twice the rate, each an M/D/1 queue of its own; in turns they would wait less (E2/D/1).
    replicas = {"count": 2, "router": "random"}
    samples = [mean_wait_s(run(seed, rate_per_s=2 * RATE_PER_S, replicas=replicas)) for seed in SEEDS]
    in_turns = mean_wait_s(run(0, rate_per_s=2 * RATE_PER_S, replicas={"count": 2, "router": "round_robin"}))
    assert_mean(samples, 0.5, not_this=in_turns)


@pytest.mark.parametrize("engine", ["interpreted", "compiled"])
@pytest.mark.parametrize("name", ONE_SERVER)
def test_each_wait_follows_lindley(name: str, engine: str) -> None:
    """W(n+1) = max(0, W(n) + S - A(n)): the whole sample path, for every scheduler."""
    requests = run(3, scheduler=ONE_SERVER[name], num_requests=500, engine=engine).requests
    arrival_s = requests["arrival_s"].to_numpy(float)
    wait_s = 0.0
    expected = [wait_s]
    for gap_s in np.diff(arrival_s):
        wait_s = max(0.0, wait_s + 1.0 - float(gap_s))
        expected.append(wait_s)
    # Sums of instants up to some 1000 s round at about 1e-13 s each.
    np.testing.assert_allclose(requests["queue_s"].to_numpy(float), expected, rtol=0, atol=1e-9)
