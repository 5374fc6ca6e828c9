"""Profiles with attention tables: what the configuration takes from them, the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from cbsim.cost.cost_model import StepShape
from cbsim.cost.costfile import CostFile, model_shape, read_cost_file
from cbsim.cost.profile import ProfileConfig, ProfileCost
from tests.cost.test_attention_grid import FORM, GRID, factor_of
from tests.cost.test_profile import BOX
from tests.specs.test_specs import load_gpu, load_model

MIXED = StepShape(((500, 512),), 1, 64, 64_000, 3000)
DECODES = StepShape((), 0, 64, 64_000, 3000)
EQUAL = DECODES._replace(max_decode_context=1000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("profile")
    CostFile(
        format="cbsim-cost/1",
        gpu="h200",
        device="a made-up device",
        model=model_shape(load_model("llama-3-8b")),
        tensor_parallel=1,
        form=FORM,
        box=BOX,
        points_sha256="0" * 64,
    ).save(folder / "cost.json")
    return folder


def make(folder: Path, **settings: object) -> ProfileCost:
    config = ProfileConfig(type="profile", profile=str(folder), host="none", **settings)
    return ProfileCost(config, load_model("llama-3-8b"), load_gpu("h200"))


def test_the_file_keeps_its_tables(folder):
    assert read_cost_file(folder / "cost.json").form.grid == GRID


def test_unequal_contexts_can_be_left_out(folder):
    with_skew, without = make(folder), make(folder, unequal_contexts=False)
    assert with_skew.step_s(EQUAL) == without.step_s(EQUAL) == without.step_s(DECODES)
    lost = 32 * factor_of(GRID.decode.skew, 64) * 2000
    assert with_skew.step_s(DECODES) - without.step_s(DECODES) == pytest.approx(lost, rel=1e-9)


def test_the_formula_and_the_sum_can_be_had_in_place_of_tables(folder):
    by_formula, by_sum = make(folder, attention="formula"), make(folder, attention="sum")
    assert by_formula.step_s(DECODES) == by_sum.step_s(DECODES) != make(folder).step_s(DECODES)
    assert by_sum.step_s(MIXED) != by_formula.step_s(MIXED)
