"""`cbsim calibrate fit` and `import`, end to end on the command line."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from cbsim.cli import main
from cbsim.cost.attention import decode_attention_s
from cbsim.cost.costfile import model_shape
from cbsim.cost.profile import ProfileConfig, ProfileCost
from cbsim.lab.calibrate import coefficients
from cbsim.lab.calibrate.accuracy import Errors, Report
from cbsim.lab.calibrate.pointsfile import Meta, read_meta, save_meta, write_points
from tests.cost.laws import make_form
from tests.lab.calibrate.synthetic import sizes, timed
from tests.specs.test_specs import load_gpu, load_model


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


def test_fit_makes_a_profile_that_a_run_can_use(points, tmp_path, monkeypatch):
    monkeypatch.setattr(coefficients, "NUM_STARTS", 1)
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
        32 * (law.dense.at(64) + decode_attention_s(law.decode, 64, 64_000)) + law.logits.at(64), rel=0.02
    )


def test_errors_as_a_table():
    errors = Errors(4, 1.25, 3.0, 12.0, -0.5)
    report = Report([], np.empty(0), {"fitted": {"dense": errors}, "held_out": {"all": errors}})
    table = report.table("somewhere")
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


def test_points_that_cannot_be_fitted_leave_nothing_behind(points, tmp_path):
    lines = points.read_text().splitlines(keepends=True)
    points.write_text("".join(line for line in lines if not line.startswith("dense")))
    message = "too few points to fit: dense: 0 points, expected at least 3\n"
    assert run("fit", points, "--out", tmp_path / "new") == (2, message)
    assert not (tmp_path / "new").exists()
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "cost.json").write_text("before")
    assert run("fit", points, "--out", tmp_path / "there") == (2, message)
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["cost.json"]
    assert (tmp_path / "there" / "cost.json").read_text() == "before"


def test_points_of_another_origin_are_not_written_over(points, tmp_path):
    out = tmp_path / "theirs"
    out.mkdir()
    (out / "points.csv").write_text("precious")
    assert run("fit", points, "--out", out)[1] == (
        f"{out}: holds points.csv without meta.json; give another --out\n"
    )
    meta = read_meta(points.with_name("meta.json"))
    save_meta(meta.model_copy(update={"device": "hourglass", "tensor_parallel": 4}), out / "meta.json")
    code, output = run("fit", points, "--out", out)
    assert (code, output) == (
        2,
        f"{out}: holds points of another device: hourglass, not clockwork; give another --out\n"
        f"{out}: holds points of another parallelism: 4 tensor, 1 expert, 1 data, not 1 tensor, 1 expert, "
        "1 data; give another --out\n",
    )
    assert (out / "points.csv").read_text() == "precious"


def test_a_folder_that_cannot_be_written(points):
    for out in ("/proc/cbsim", points / "below"):
        code, output = run("fit", points, "--out", out)
        assert code == 2
        assert output.startswith(f"{out}: can't be written: ")
        assert output.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": None}, "model lacks num_layers"),
        ({"num_layers": "many"}, "model has num_layers 'many', expected whole numbers > 0"),
        ({"num_kv_heads": 0}, "model has num_kv_heads 0, expected whole numbers > 0"),
    ],
)
def test_a_meta_file_without_the_model_it_needs(points, tmp_path, change, message):
    path = points.with_name("meta.json")
    meta = json.loads(path.read_text())
    meta["model"] = {key: value for key, value in (meta["model"] | change).items() if value is not None}
    path.write_text(json.dumps(meta))
    assert run("fit", points, "--out", tmp_path / "new") == (2, f"{path}: {message}\n")


def test_names_are_checked_before_a_folder_is_made(tmp_path):
    pytest.importorskip("torch")
    out = tmp_path / "new"
    for wrong, message in (
        (["--model", "tny"], "no model 'tny'; did you mean 'tiny'?"),
        (["--model", "tiny", "--gpu", "h2000"], "no gpu 'h2000'; did you mean 'h200'?"),
        (["--model", "tiny", "--backend", "sdp"], "unknown attention backend 'sdp'; did you mean 'sdpa'?"),
    ):
        assert run("--device", "cpu", *wrong, "--out", out) == (2, f"{message}\n")
    assert not out.exists()


def test_without_anything_to_do():
    code, output = run()
    assert code == 2
    assert "give --device, --model and --out, or a command: fit, import" in output
