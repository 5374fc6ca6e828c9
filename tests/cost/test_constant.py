"""ConstantCost: the configured number, to the bit."""

import pytest
from pydantic import ValidationError

from cbsim.cost.constant import ConstantConfig, ConstantCost
from cbsim.cost.cost_model import StepShape
from tests.specs.test_specs import load_gpu, load_model


def make(**settings) -> ConstantCost:
    return ConstantCost(
        ConstantConfig(type="constant", **settings), load_model("llama-3-8b"), load_gpu("h200")
    )


@pytest.mark.parametrize("step_s", [1.0, 0.1, 1e-12, 0.30000000000000004])
def test_plain_constant_is_untouched(step_s):
    cost = make(step_s=step_s)
    assert cost.step_s(StepShape(((512, 0), (3, 70_000)), 1, 17, 12_345, 900)) == step_s
    assert cost.decode_s(256, 10**9, 10**7) == step_s


def test_extras_by_hand():
    cost = make(step_s=0.5, per_prefill_token_s=0.25, per_decode_s=2.0)
    assert cost.step_s(StepShape(((3, 0), (1, 9)), 1, 2, 50, 30)) == 0.5 + 4 * 0.25 + 2 * 2.0
    assert cost.decode_s(3, 60, 30) == cost.step_s(StepShape((), 0, 3, 60, 30)) == 6.5


@pytest.mark.parametrize(
    "settings", [{"step_s": 0.0}, {"step_s": -1.0}, {}, {"step_s": 1.0, "per_decode_s": -0.1}]
)
def test_a_step_takes_time(settings):
    with pytest.raises(ValidationError):
        make(**settings)
