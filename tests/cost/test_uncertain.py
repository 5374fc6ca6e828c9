"""Errors drawn on a profile's step times: how large, how alike, and the same bits on every way to them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cbsim.base.errors import CalibrationError, ConfigError
from cbsim.base.paths import data_folder
from cbsim.cost.cost_model import StepShape
from cbsim.cost.costfile import read_cost_file
from cbsim.cost.kernel_errors import KINDS, ErrorRecord, KernelErrors, Kind
from cbsim.cost.profile import ProfileConfig, ProfileCost
from cbsim.cost.profile_record import form_attention_s
from cbsim.cost.step_columns import StepColumns
from cbsim.studies.intervals import across_replicates
from cbsim.studies.run import run
from cbsim.studies.sweep import sweep
from tests.cost.laws import make_form
from tests.specs.test_specs import load_gpu, load_model

NOWHERE = Path("cost.json")
SMALL = {"num_points": 100, "median_pct": 1.0, "p90_pct": 3.0, "worst_pct": 9.0, "bias_pct": 0.5}
LARGE = {"num_points": 25, "median_pct": 4.0, "p90_pct": 20.0, "worst_pct": 45.0, "bias_pct": -6.0}
HELD_OUT = {"dense": SMALL, "logits": LARGE, "prefill": SMALL, "decode": LARGE}
SEEDS = range(400)
SHIPPED = data_folder("calibration") / "profiles" / "h200" / "llama-3-8b" / "cost.json"


@pytest.mark.parametrize(
    "accuracy",
    [
        "x",
        {"whole_steps": "x"},
        {"held_out": {"all": {"p90_pct": "x"}}},
        {"fitted": {"all": {"p90_pct": 1e308}}},
    ],
)
def test_a_profile_whose_errors_are_none_is_told(accuracy: Any, tmp_path: Path) -> None:
    path = tmp_path / "cost.json"
    path.write_text(json.dumps(json.loads(SHIPPED.read_text()) | {"accuracy": accuracy}))
    with pytest.raises(CalibrationError, match="accuracy"):
        read_cost_file(path)


SIGMA = 0.05
"""Of what all steps have in common."""


def errors(seed: int, held_out: dict[str, Any] = HELD_OUT, sigma: float = SIGMA) -> KernelErrors:
    return KernelErrors.read({"held_out": held_out}, NOWHERE, sigma, seed)


def predicted_over_measured(kind: Kind, seeds: Any = SEEDS, num_cells: int = 12) -> Any:
    """A row a seed, a column a cell."""
    return np.array(
        [[1 / (1 + errors(seed).excess(kind, cell)) for cell in range(num_cells)] for seed in seeds]
    )


@pytest.mark.parametrize(("kind", "record"), [("dense", SMALL), ("decode", LARGE)])
def test_drawn_errors_are_as_large_as_those_recorded(kind: Kind, record: dict[str, Any]) -> None:
    drawn = np.log(predicted_over_measured(kind))
    systematic = np.median(drawn, axis=1)
    size = np.expm1(np.abs(drawn - systematic[:, None])) * 100
    # 4,800 draws: the standard error of a median is about 2 % of it, of p90 about 3 %.
    assert np.median(size) == pytest.approx(record["median_pct"], rel=0.15)
    assert np.quantile(size, 0.9) == pytest.approx(record["p90_pct"], rel=0.15)
    assert np.mean(systematic) == pytest.approx(0.0, abs=0.01)


@pytest.mark.parametrize("record", [SMALL, LARGE, SMALL | {"p90_pct": 2.4386}])
def test_residuals_have_the_recorded_quantiles(record: dict[str, Any]) -> None:
    told = ErrorRecord.model_validate(record)
    z_50, z_90 = 0.67448975, 1.64485363
    assert math.expm1(told.residual(z_50)) * 100 == pytest.approx(record["median_pct"])
    assert math.expm1(told.residual(z_90)) * 100 == pytest.approx(record["p90_pct"])
    assert told.residual(-z_90) == -told.residual(z_90)
    assert math.expm1(told.residual(9.0)) * 100 == pytest.approx(record["worst_pct"])
    assert told.residual(0.0) == 0.0


def test_no_errors_recorded_draw_none() -> None:
    perfect = ErrorRecord(num_points=9, median_pct=0.0, p90_pct=0.0, worst_pct=0.0, bias_pct=0.0)
    assert [perfect.residual(z) for z in (-2.0, 0.3, 5.0)] == [0.0] * 3
    exact = dict.fromkeys(HELD_OUT, perfect.model_dump())
    assert {errors(0, exact, 0.0).excess(kind, 3) for kind in KINDS} == {0.0}


def test_what_all_steps_have_in_common_is_as_wide_as_runs_showed() -> None:
    """All kinds share it, seeds have their own: 9 of 10 within exp(1.645 sigma)."""
    exact = dict.fromkeys(HELD_OUT, SMALL | {"median_pct": 1e-9, "p90_pct": 2e-9, "worst_pct": 3e-9})
    drawn = np.array([[errors(seed, exact).excess(kind, 4) for kind in KINDS] for seed in SEEDS])
    assert np.ptp(drawn, axis=1).max() < 1e-9
    assert np.log1p(drawn[:, 0]).std() == pytest.approx(SIGMA, rel=0.1)
    within = np.abs(np.log1p(drawn[:, 0])) < 1.645 * SIGMA
    assert within.mean() == pytest.approx(0.9, abs=0.04)


def test_an_error_is_of_its_seed_kind_and_cell_whatever_was_asked_before() -> None:
    first, second = errors(3), errors(3)
    keys: list[tuple[Kind, int]] = [(kind, cell) for kind in KINDS for cell in range(8)]
    drawn = {key: first.excess(*key) for key in keys}
    assert {key: second.excess(*key) for key in reversed(keys)} == drawn
    assert len(set(drawn.values())) == len(keys)
    other = errors(4)
    assert not set(drawn.values()) & {other.excess(*key) for key in keys}


def test_kinds_of_equal_records_err_each_in_its_own_way() -> None:
    sure = SMALL | {"num_points": 10**9, "bias_pct": 0.0}
    alike = errors(3, dict.fromkeys(HELD_OUT, sure))
    assert len({round(alike.excess(kind, 4), 5) for kind in KINDS}) == len(KINDS)


def test_mixed_attention_errs_like_the_worse_of_its_parts_unless_it_was_timed() -> None:
    assert errors(0).records["mixed"] == ErrorRecord.model_validate(LARGE)
    timed = errors(0, HELD_OUT | {"mixed": SMALL})
    assert timed.records["mixed"] == ErrorRecord.model_validate(SMALL)


@pytest.mark.parametrize(
    ("accuracy", "told"),
    [
        ({}, "records no held-out errors of dense, logits, prefill, decode, which cost_model.uncertainty"),
        ({"held_out": {"dense": SMALL}}, "records no held-out errors of logits, prefill, decode"),
        ({"held_out": {"dense": SMALL | {"p90_pct": -1.0}}}, "accuracy.held_out: is no table of errors"),
        ({"held_out": 3}, "accuracy.held_out: is no table of errors"),
    ],
)
def test_a_profile_without_errors_has_none_to_draw(accuracy: dict[str, Any], told: str) -> None:
    with pytest.raises(CalibrationError) as caught:
        KernelErrors.read(accuracy, NOWHERE, SIGMA, 0)
    assert str(caught.value).startswith(f"cost.json: {told}")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Profiles of known coefficients with and without a fused form."""
    shipped = Path(__file__).resolve().parents[2] / "calibration/profiles/h200/llama-3-8b/cost.json"
    read = json.loads(shipped.read_text())
    folders = {}
    for fused in (False, True):
        folders[fused] = tmp_path_factory.mktemp("profile")
        form = make_form(fused=fused).model_dump(mode="json")
        told = read | {"form": form, "accuracy": {"held_out": HELD_OUT}}
        (folders[fused] / "cost.json").write_text(json.dumps(told))
    return folders


def make(folder: Path, **config: Any) -> ProfileCost:
    told = ProfileConfig(type="profile", profile=str(folder), **config)
    return ProfileCost(told, load_model("llama-3-8b"), load_gpu("h200"))


def test_each_part_of_a_step_takes_its_own_factor(folders: dict[bool, Path]) -> None:
    """Parts by the form itself; 100 decodes of 1000 tokens each beside a chunk of 300 over 500."""
    cost = make(folders[True], host="none", uncertainty=True, cuda_graph_batch_sizes=[128]).drawn(5)
    form, drawn = make_form(fused=True), errors(5, sigma=cost.step_error.sigma)
    decode = StepShape((), 0, 100, 100_000, 2000)
    columns = StepColumns.from_shapes([decode])
    dense, logits = form.dense.at(np.array([128, 400])), form.logits.at(np.array([100, 101]))
    attention, _ = form_attention_s(form, columns)
    by_hand = (
        32 * dense[0] * (1 + drawn.excess("dense", 8))
        + logits[0] * (1 + drawn.excess("logits", 7))
        + 32 * attention[0] * (1 + drawn.excess("decode", 7, 10))
    )
    assert cost.step_s(decode) == pytest.approx(by_hand, rel=1e-12)
    mixed = StepShape(((300, 500),), 1, *decode[2:])
    _, attention = form_attention_s(form, StepColumns.from_shapes([mixed]))
    by_hand = (
        32 * dense[1] * (1 + drawn.excess("dense", 9))
        + logits[1] * (1 + drawn.excess("logits", 7))
        + 32 * attention[0] * (1 + drawn.excess("mixed", 9, 10, 7, 10))
    )
    assert cost.step_s(mixed) == pytest.approx(by_hand, rel=1e-12)


def test_without_uncertainty_the_model_is_its_own(folders: dict[bool, Path]) -> None:
    cost = make(folders[False])
    assert cost.drawn(7) is cost
    assert not cost.uses_seed
    assert make(folders[False], uncertainty=True).drawn(7).uses_seed


RUN: dict[str, Any] = {
    "workload": {"type": "trace", "path": "azure-like.csv", "limit": 150, "rate_scale": 8.0},
    "scheduler": {"type": "vllm", "max_tokens_per_step": 1024, "max_num_seqs": 64},
    "kv_cache": {"num_blocks": 3000},
    "cost_model": {"type": "profile", "profile": "h200/llama-3-8b", "uncertainty": True},
    "slo": {"ttft_s": 1.0, "tpot_s": 0.02},
}


@pytest.mark.parametrize("scheduler", ["vllm", "preemptive", "continuous"])
def test_both_engines_draw_the_same_errors(scheduler: str) -> None:
    config = RUN | {"scheduler": {"type": scheduler, "max_num_seqs": 64}}
    fast, naive = (run(config, overrides={"engine": engine, "seed": 3}) for engine in ("fast", "reference"))
    for name in ("requests", "steps", "events"):
        first, second = getattr(fast, name), getattr(naive, name)
        # Where a request's time went is measured on request alone.
        shared = [column for column in first.columns if column in second.columns]
        assert first[shared].equals(second[shared])
        assert len(shared) > 6
    assert any("errors drawn from the seed" in note for note in fast.notes)


def test_replicates_then_include_the_cost_models_error(tmp_path: Path) -> None:
    replicated = RUN | {"sweep": {"cost_model.uncertainty": [False, True], "replicates": 4}}
    table = sweep(replicated, tmp_path / "out")
    certain, uncertain = across_replicates(table, by_spread=True).to_dict("records")
    for figure in ("tpot_s.p50", "e2e_s.p99", "ttft_s.p99"):
        assert certain[f"{figure}.low"] == certain[figure] == certain[f"{figure}.high"]
        width = uncertain[f"{figure}.high"] - uncertain[f"{figure}.low"]
        assert width > 0.002 * uncertain[figure]
        assert uncertain[figure] == pytest.approx(certain[figure], rel=0.2)
    assert table[table["cost_model.uncertainty"]]["tpot_s.p50"].nunique() == 4


def test_only_profiles_have_errors_to_draw() -> None:
    with pytest.raises(ConfigError, match=r"cost_model\.uncertainty: unknown key"):
        run(RUN, overrides={"cost_model": {"type": "roofline", "uncertainty": True}})
