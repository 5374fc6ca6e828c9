"""Bounds: numbers that no service has, in any section; the reference tells the same table."""

import pytest

from cbsim.base.errors import ConfigError
from cbsim.config.bounds import BOUNDS, beyond_bounds, bound_of
from cbsim.studies.experiment import Experiment

PLAIN = {
    "model": "tiny",
    "workload": {
        "type": "synthetic",
        "num_requests": 2,
        "arrivals": {"type": "poisson", "rate_per_s": 1.0},
        "prompt_tokens": {"type": "fixed", "value": 8},
        "output_tokens": {"type": "fixed", "value": 2},
    },
    "scheduler": {"type": "vllm"},
    "kv_cache": {"num_blocks": 100},
    "cost_model": {"type": "constant", "step_s": 0.01},
}


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("kv_cache.block_size=1000000000", "expected at most 1,048,576"),
        ("cost_model.step_s=5e-324", "expected at least 1e-12"),
        ("cost_model.step_s=1e308", "expected at most 1e+15"),
        ("cost_model.per_prefill_token_s=1e300", "expected at most 1,000 "),
        ("workload.rate_scale=1e-320", "expected at least 1e-09"),
        ("workload.arrivals={type: gamma, rate_per_s: 1, cv: 1e300}", "expected at most 100 "),
        ("workload.arrivals={type: daily, rate_per_s: 5e-324}", "expected at least 1e-09"),
        ("workload.prompt_tokens={type: lognormal, median: 5, sigma: 1e300}", "expected at most 10 "),
        ("workload.prompt_tokens.value=4611686018427387904", "<= 100,000,000"),
        ("workload.sessions={num_turns: {type: fixed, value: 1001}}", "allowed: 1,000"),
        ("workload.users={num_users: 1000000000}", "expected at most 10,000,000"),
        ("workload.limit=4611686018427387904", "expected at most 2,147,483,647 (32 bits)"),
        ("replicas.count=1000000", "expected at most 10,000 "),
        ("sweep.replicates=1000000000", "1,000,000,000 points; expected at most 100,000"),
    ],
)
def test_what_no_service_has_is_told(setting, told):
    with pytest.raises(ConfigError) as caught:
        Experiment.from_mapping(PLAIN, [setting])
    (problem,) = caught.value.problems
    assert problem.startswith("--set: ")
    assert setting.partition("=")[0].rpartition(".")[0].split(".")[0] in problem
    assert told in problem


def test_seeds_have_64_bits_and_the_first_row_holds():
    assert beyond_bounds("seed", 2**63 - 1) is None
    assert bound_of("host_step_s").names == "*step_s"
    assert beyond_bounds("weights", [1.0, [2.0, 1e16]]) is not None
    assert bound_of("anything") is BOUNDS[-1]
