"""Profile folders written without a report."""

from dataclasses import replace

import pytest

from calibration.served_runs import prediction
from calibration.served_runs.prediction import write_quick_profile
from cbsim.cost.costfile import model_shape, read_cost_file
from cbsim.lab.calibrate.pointsfile import Meta
from tests.cost.laws import make_form
from tests.lab.calibrate.synthetic import sizes, timed
from tests.specs.test_specs import load_model

META = Meta(
    device="a law",
    model=model_shape(load_model("llama-3-8b")),
    source="a test",
    date="2026-01-01",
    command="-",
)


def test_a_quick_profile_is_fitted_again_only_where_points_changed(tmp_path, monkeypatch):
    points = timed(sizes(mixed=False), make_form(fused=False), 0.0, 0)
    folder = tmp_path / "profile"
    write_quick_profile(folder, points, META)
    assert sorted(path.name for path in folder.iterdir()) == ["cost.json", "meta.json", "points.csv"]
    cost = read_cost_file(folder / "cost.json")
    assert (cost.device, cost.accuracy) == ("a law", {})

    def fitted(*arguments):
        raise AssertionError("fitted again")

    monkeypatch.setattr(prediction, "fit_unreported", fitted)
    write_quick_profile(folder, points, META)
    assert read_cost_file(folder / "cost.json") == cost
    with pytest.raises(AssertionError, match="fitted again"):
        write_quick_profile(folder, [*points[1:], replace(points[0], t_median_s=1.0)], META)
    assert read_cost_file(folder / "cost.json") == cost
