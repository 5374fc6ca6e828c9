"""Profiles with attention tables: what the configuration takes from them, the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from cbsim.cost.cost_model import StepShape
from cbsim.cost.costfile import CostFile, model_shape, read_cost_file
from cbsim.cost.profile import ProfileConfig, ProfileCost
from cbsim.cost.step_columns import StepColumns
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
    config = ProfileConfig(type="profile", profile=str(folder), **{"host": "none"} | settings)
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


CHUNK = StepShape(((100, 0),), 1, 0, 0, 0)
FEW = StepShape((), 0, 4, 400, 100)
MANY = StepShape((), 0, 100, 10_000, 100)


def test_steps_without_a_graph_last_as_long_as_launching_their_kernels(folder):
    """Those with chunks beyond the tokens captured, and more decodes than any batch size has."""
    settings = {"host": "async", "host_gap_s": 0.0, "cuda_graph_batch_sizes": [8, 64]}
    with_floor = make(folder, eager_step_s=0.5, mixed_graph_tokens=99, **settings)
    captured = make(folder, eager_step_s=0.5, mixed_graph_tokens=100, **settings)
    without = make(folder, **settings)
    assert with_floor.step_s(CHUNK) == with_floor.step_s(MANY) == 0.5
    assert captured.step_s(CHUNK) == without.step_s(CHUNK) < 0.5
    assert with_floor.step_s(FEW) == without.step_s(FEW) < 0.5


def test_the_floor_is_the_hosts_share(folder):
    cost = make(folder, host="async", eager_step_s=0.5, mixed_graph_tokens=0)
    columns = StepColumns.from_shapes([CHUNK, FEW])
    step_s = cost.steps_s(columns)
    host_s = cost.host_s(step_s, columns.num_chunks + columns.num_decodes, columns.take)
    bare = make(folder, host="none").steps_s(columns)
    assert step_s - host_s == pytest.approx(bare, rel=1e-9)


def test_sorting_logits_costs_by_rows_and_vocabulary(folder):
    plain, sorting = make(folder), make(folder, sort_logit_s=1e-10)
    more_s = sorting.step_s(MANY) - plain.step_s(MANY)
    assert more_s == pytest.approx(100 * 128_256 * 1e-10, rel=1e-9)
    far = StepShape((), 0, 3000, 300_000, 100)
    assert sorting.step_s(far) - plain.step_s(far) == pytest.approx(3000 * 128_256 * 1e-10, rel=1e-9)
