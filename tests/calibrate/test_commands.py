"""`cbsim calibrate fit` and `import`, end to end on the command line."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from cbsim.calibrate.accuracy import Errors
from cbsim.calibrate.fit import Report
from cbsim.calibrate.meta import Meta, save_meta
from cbsim.calibrate.pointsfile import write_points
from cbsim.calibrate.summary import errors_table
from cbsim.cli import main
from cbsim.cost.costfile import model_shape
from cbsim.cost.profile import ProfileConfig, ProfileCost
from tests.calibrate.synthetic import sizes, timed
from tests.cost.laws import make_form
from tests.test_specs import load_gpu, load_model


@pytest.fixture
def points(tmp_path):
    """Points of a law, with their meta.json."""
    folder = tmp_path / "timed"
    folder.mkdir()
    write_points(folder / "points.csv", timed(sizes(mixed=False), make_form(fused=False), 0.003, 0))
    meta = Meta(
        device="clockwork",
        model=model_shape(load_model("llama-3-8b")),
        source="a law",
        date="2026-01-01",
        command="none",
    )
    save_meta(meta, folder / "meta.json")
    return folder / "points.csv"


def run(*arguments) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["calibrate", *map(str, arguments)])
    return result.exit_code, result.output


def test_fit_makes_a_profile_that_a_run_can_use(points, tmp_path):
    out = tmp_path / "profile"
    code, output = run("fit", points, "--out", out, "--json")
    assert code == 0
    assert json.loads(output)["held_out"]["all"]["median_pct"] < 1.0
    assert {path.name for path in out.iterdir()} == {
        "points.csv",
        "meta.json",
        "cost.json",
        "errors.png",
        "errors.svg",
    }
    cost = ProfileCost(
        ProfileConfig(type="profile", profile=str(out), host="none"),
        load_model("llama-3-8b"),
        load_gpu("rtx4090"),  # a device without a name in configs/gpus goes with any
    )
    law = make_form(fused=False)
    assert cost.decode_s(64, 64_000, 1000) == pytest.approx(
        32 * (law.dense.at(64) + law.decode.seconds(64, 64_000)) + law.logits.at(64), rel=0.02
    )


def test_errors_as_a_table():
    errors = Errors(4, 1.25, 3.0, 12.0, -0.5)
    report = Report(
        points=[],
        predicted=np.empty(0),
        fitted={"dense": errors},
        held_out={"all": errors},
        largest={},
        steps={},
        repeatability={},
    )
    table = errors_table(report, "somewhere")
    assert table.rows == (
        ("fitted: dense", "4", "1.2", "3.0", "12.0", "-0.5"),
        ("held out: all", "4", "1.2", "3.0", "12.0", "-0.5"),
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "absent.csv", "--out", "x"], "absent.csv: can't be read: No such file or directory"),
        (
            ["import", "nvidia", "--system", "l40s", "--model", "llama-3-8", "--out", "x"],
            "no model 'llama-3-8'; did you mean 'llama-3-8b'?",
        ),
    ],
)
def test_mistakes_exit_2_with_a_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, output = run(*arguments)
    assert (code, output) == (2, f"{message}\n")


def test_points_without_their_meta(points, tmp_path):
    points.with_name("meta.json").unlink()
    code, output = run("fit", points, "--out", tmp_path / "profile")
    assert code == 2
    assert "meta.json: can't be read" in output
    assert not (tmp_path / "profile").exists()


def test_without_anything_to_do():
    code, output = run()
    assert code == 2
    assert "give --device, --model and --out, or a command: fit, import" in output
