"""Where the module of a part named `module:Class` is found: beside its experiment, here, or installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import cbsim
from cbsim.base.errors import CbsimError
from cbsim.base.registry import located, located_from_here
from cbsim.schedulers import SCHEDULERS
from cbsim.studies.experiment import Experiment
from cbsim.studies.run import run_experiment

MODULE = """\
from cbsim.schedulers.continuous import ContinuousScheduler, ContinuousConfig
{more}

class OwnConfig(ContinuousConfig):
    \"\"\"As its base.\"\"\"

class Own(ContinuousScheduler):
    \"\"\"Notes where it comes from.\"\"\"

    Config = OwnConfig
    uses_seed = False

    @classmethod
    def notes(cls, config, requests, own):
        return ["from {where}"]
"""
EXPERIMENT = """\
workload:
  type: synthetic
  num_requests: 4
  arrivals: {{type: poisson, rate_per_s: 1.0}}
  prompt_tokens: {{type: fixed, value: 8}}
  output_tokens: {{type: fixed, value: 2}}
scheduler: {{type: "{type}"}}
cost_model: {{type: constant, step_s: 0.1}}
"""


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Current folder `here`; what is imported in a test is forgotten after it."""
    (tmp_path / "here").mkdir()
    (tmp_path / "exp").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = {*sys.modules}
    yield tmp_path
    for name in {*sys.modules} - before:
        if name.partition(".")[0] in ("own", "parts", "aid"):
            del sys.modules[name]


def write_module(path: Path, where: str, more: str = "") -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(MODULE.format(where=where, more=more))


def write_experiment(path: Path, name: str) -> Path:
    path.write_text(EXPERIMENT.format(type=name))
    return path


def notes(path: Path) -> list[str]:
    return [note for note in cbsim.run(path).notes if note.startswith("from ")]


def problem(path: Path) -> str:
    with pytest.raises(CbsimError) as caught:
        Experiment.load(path)
    (told,) = caught.value.problems
    return told


def test_a_module_beside_the_experiment_is_found(working_folder: Path) -> None:
    write_module(working_folder / "exp" / "own.py", "exp")
    path = write_experiment(working_folder / "exp" / "e.yaml", "own:Own")
    assert notes(path) == ["from exp"]
    assert Experiment.load(path).scheduler.type == f"{working_folder}/exp/own:Own"


def test_it_comes_before_one_in_the_current_folder(working_folder: Path) -> None:
    write_module(working_folder / "exp" / "own.py", "exp")
    write_module(working_folder / "here" / "own.py", "here")
    assert notes(write_experiment(working_folder / "exp" / "e.yaml", "own:Own")) == ["from exp"]


def test_one_in_the_current_folder_is_found_as_ever(working_folder: Path) -> None:
    write_module(working_folder / "here" / "own.py", "here")
    path = write_experiment(working_folder / "exp" / "e.yaml", "own:Own")
    assert notes(path) == ["from here"]
    assert Experiment.load(path).scheduler.type == "own:Own"


@pytest.mark.parametrize("name", ["parts/own:Own", "../exp/parts/own:Own", "parts.own:Own"])
def test_modules_in_folders_and_packages(working_folder: Path, name: str) -> None:
    write_module(working_folder / "exp" / "parts" / "own.py", "a folder")
    assert notes(write_experiment(working_folder / "exp" / "e.yaml", name)) == ["from a folder"]


def test_it_may_import_what_lies_beside_it(working_folder: Path) -> None:
    write_module(working_folder / "exp" / "own.py", "exp", more="from aid import HELP")
    (working_folder / "exp" / "aid.py").write_text("HELP = 1\n")
    assert notes(write_experiment(working_folder / "exp" / "e.yaml", "own:Own")) == ["from exp"]


def test_a_run_is_made_again_from_any_folder(working_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_module(working_folder / "exp" / "own.py", "exp")
    write_experiment(working_folder / "exp" / "e.yaml", "own:Own")
    monkeypatch.chdir(working_folder / "exp")
    assert Experiment.load("e.yaml").scheduler.type == "own:Own"
    run_experiment(Experiment.load("e.yaml")).save("run")
    stored = yaml.safe_load(Path("run/config.yaml").read_text())
    assert stored["scheduler"]["type"] == f"{working_folder}/exp/own:Own"
    monkeypatch.chdir(working_folder / "here")
    assert notes(working_folder / "exp" / "run" / "config.yaml") == ["from exp"]


def test_workers_find_it(working_folder: Path) -> None:
    write_module(working_folder / "exp" / "own.py", "exp")
    path = write_experiment(working_folder / "exp" / "e.yaml", "own:Own")
    swept = {"sweep.scheduler.max_num_seqs": [1, 2]}
    table = cbsim.sweep(path, out="out", workers=2, overrides=swept)
    assert table["error"].isna().all()


def test_a_module_that_is_nowhere_is_told_with_both_places(working_folder: Path) -> None:
    path = write_experiment(working_folder / "exp" / "e.yaml", "own:Own")
    assert problem(path) == (
        f"{path}:7: scheduler.type: scheduler 'own:Own': can't import module 'own': No module named 'own'; "
        f"looked in {working_folder}/exp, {working_folder}/here and among what is installed"
    )


def test_what_a_module_itself_lacks_is_told_without_places(working_folder: Path) -> None:
    write_module(working_folder / "exp" / "own.py", "exp", more="import aid")
    path = write_experiment(working_folder / "exp" / "e.yaml", "own:Own")
    assert problem(path).endswith("can't import module 'own': No module named 'aid'")


def test_two_modules_of_one_name_are_told_apart(working_folder: Path) -> None:
    for place in ("exp", "here"):
        write_module(working_folder / place / "own.py", place)
    assert notes(write_experiment(working_folder / "here" / "e.yaml", "own:Own")) == ["from here"]
    path = write_experiment(working_folder / "exp" / "e.yaml", "own:Own")
    assert problem(path).endswith(
        f"/exp/own:Own': another module 'own' is loaded already, {working_folder}/here/own.py; allowed: "
        "modules of different names"
    )


def test_names_without_a_module_stay(working_folder: Path) -> None:
    write_module(working_folder / "here" / "own.py", "here")
    for name in ("vllm", "own", "json:JSONDecoder", ":", "a:", ":Own"):
        assert located(name, working_folder / "here") == name
    assert located("own:Own", Path()) == f"{working_folder}/here/own:Own"
    assert located_from_here("own:Own", Path()) == "own:Own"
    assert SCHEDULERS.get("vllm", working_folder) is SCHEDULERS.get("vllm")
