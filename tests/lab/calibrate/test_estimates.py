"""Estimates of launches nobody timed: by KV heads, only where nothing was timed, stated with their error."""

from __future__ import annotations

import pytest

from cbsim.cost.costfile import model_shape
from cbsim.cost.kernel_errors import KernelErrors
from cbsim.lab.calibrate import coefficients
from cbsim.lab.calibrate.estimates import SENTENCES, with_estimates
from cbsim.lab.calibrate.fit import fit_cost_file
from cbsim.lab.calibrate.point import Point
from cbsim.lab.calibrate.pointsfile import Meta, write_points
from cbsim.lab.calibrate.skewfit import Splitting
from tests.cost.laws import make_form
from tests.cost.test_attention_grid import GRID, TIMED
from tests.lab.calibrate.test_gridfit import make_points
from tests.specs.test_specs import load_model

BOTH = ["mixed", "unequal"]
APART = make_form(fused=False).model_copy(update={"grid": GRID.model_copy(update={"mixed": None})})


def test_factors_go_by_the_kv_heads_launched():
    of_eight, of_two = (with_estimates(APART, BOTH, Splitting(heads)).beside for heads in (8, 2))
    assert of_eight.decodes == (1, 2, 4, 8, 16, 32, 64, 128)
    assert of_two.decodes == (4, 8, 16, 32, 64, 128, 256, 512)
    assert of_two.factors == of_eight.factors


def test_losses_begin_where_contexts_are_no_longer_split():
    """And are so many tokens at the rate of a full launch."""
    timed = with_estimates(APART, BOTH, Splitting(8, 188)).grid.decode.skew.timed
    assert timed.decodes == (37, 38, 64, 128, 256)
    assert timed.lost_s_per_token[:3] == pytest.approx((0.0, 5.1 / 3e8, 4.6 / 3e8), rel=1e-3)


def test_what_was_timed_or_is_not_wanted_stays():
    form = make_form(fused=True).model_copy(update={"grid": TIMED})
    assert with_estimates(form, BOTH, Splitting()) == form
    assert with_estimates(APART, [], Splitting()) == APART


def test_profiles_say_what_is_estimated_and_how_wrong_it_may_be(tmp_path, monkeypatch):
    # How wrong the rest is, other tests look at.
    monkeypatch.setattr(coefficients, "NUM_STARTS", 1)
    points = [point for point in make_points(noise=0.01) if point.op != "mixed"]
    points += [Point("dense", 1e-4 * (1 + n / 100), tokens=n) for n in (1, 8, 64, 512)]
    points += [Point("logits", 1e-4 * (1 + n / 100), num_logits=n) for n in (1, 8, 64, 512)]
    path = tmp_path / "points.csv"
    write_points(path, points)
    meta = Meta(
        device="clockwork",
        model=model_shape(load_model("llama-3-8b")),
        source="a law",
        date="2026-01-01",
        command="none",
        estimates=["mixed"],
    )
    cost_file, _ = fit_cost_file(points, meta, path)
    assert SENTENCES["mixed"] in cost_file.assumptions
    assert cost_file.form.beside is not None
    errors = KernelErrors.read(cost_file.accuracy, path, 0.1, 0).records
    assert errors["mixed"].p90_pct == 48.0 > errors["decode"].p90_pct
