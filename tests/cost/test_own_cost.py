"""A cost model of one's own, with rules or with a `step_s`: the README's example, and misuse."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import cbsim
from cbsim.cost import CostModel, CostRules, StepShape, costrules
from cbsim.cost.constant import ConstantConfig, ConstantCost
from cbsim.cost.step_columns import StepColumns
from tests.specs.test_specs import load_gpu, load_model

README = Path(__file__).resolve().parents[2] / "cbsim/cost/README.md"
STEPS = [StepShape(((100, 50), (7, 0)), 1, 3, 300, 200), StepShape((), 0, 5, 700, 300)]
SECONDS = [
    1e-5 * 110 + 1e-9 * 100 * 50 + 2e-6 * 4,
    1e-5 * 5 + 2e-6 * 5,
]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module of the example."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "per_row.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    import per_row  # type: ignore[import-not-found]

    yield per_row
    sys.modules.pop("per_row")


def make(own: Any) -> CostModel:
    config = own.PerRowConfig(type="per_row:PerRowCost", token_s=1e-5, row_s=2e-6)
    cost: CostModel = own.PerRowCost(config, load_model("llama-3-8b"), load_gpu("h200"))
    return cost


def test_the_example_runs(own: Any) -> None:
    cost = make(own)
    assert [cost.step_s(step) for step in STEPS] == pytest.approx(SECONDS, rel=1e-12)
    assert cost.decode_s(*STEPS[1][2:5]) == cost.step_s(STEPS[1])
    config: dict[str, Any] = {
        "workload": {"type": "trace", "path": "azure-like.csv", "limit": 5},
        "scheduler": {"type": "vllm"},
        "kv_cache": {"num_blocks": 3000},
        "cost_model": {"type": "per_row:PerRowCost", "token_s": 1e-5},
    }
    assert cbsim.run(config).summary["num_finished"] == 5


def test_many_steps_are_priced_with_the_same_bits_compiled_or_not(
    own: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cost, columns = make(own), StepColumns.from_shapes(STEPS * 50)
    one_by_one = [cost.step_s(step) for step in STEPS] * 50
    assert cost.steps_s(columns).tolist() == one_by_one
    assert not costrules.loop_of(own.step_s).is_loaded
    monkeypatch.setattr(costrules, "STEPS_TO_LOAD", 100)
    monkeypatch.setattr(costrules, "STEPS_TO_COMPILE", 100)
    assert cost.steps_s(columns).tolist() == one_by_one
    assert costrules.loop_of(own.step_s).is_loaded


def test_a_rule_that_numba_cannot_compile_is_interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costrules, "STEPS_TO_LOAD", 1)
    monkeypatch.setattr(costrules, "STEPS_TO_COMPILE", 1)

    class Odd(CostModel):
        def __init__(self) -> None:
            pass

        def rules(self, max_tokens: int = 0, max_decodes: int = 0) -> CostRules:
            return CostRules(odd_step_s, (0.5,))

    assert Odd().steps_s(StepColumns.from_shapes(STEPS)).tolist() == [3.5, 5.5]


def odd_step_s(cost: Any, shape: Any, chunks: Any) -> Any:
    return cost[0] + {"decodes": shape.num_decodes, "text": "none"}["decodes"]


def test_a_step_s_of_ones_own_has_no_rules_but_its_own() -> None:
    class Doubled(ConstantCost):
        def step_s(self, shape: StepShape) -> float:
            return 2 * super().step_s(shape)

    config = ConstantConfig(type="constant", step_s=0.25)
    plain, doubled = (
        kind(config, load_model("llama-3-8b"), load_gpu("h200")) for kind in (ConstantCost, Doubled)
    )
    assert plain.rules() is not None
    assert doubled.rules() is None
    assert doubled.step_s(STEPS[0]) == 0.5
    assert doubled.steps_s(StepColumns.from_shapes(STEPS)).tolist() == [0.5, 0.5]


def test_neither_rules_nor_a_step_s() -> None:
    class Nothing(CostModel):
        pass

    nothing = Nothing(ConstantConfig(type="constant", step_s=1.0), load_model("llama-3-8b"), load_gpu("h200"))
    with pytest.raises(NotImplementedError, match="Nothing has neither `rules` nor `step_s`"):
        nothing.step_s(STEPS[0])
