"""A third party's package, installed, is used by name and keeps the laws."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import cbsim
from cbsim.base.errors import ConfigError
from cbsim.cost import COST_MODELS
from cbsim.observers import OBSERVERS
from cbsim.schedulers import SCHEDULERS
from cbsim.testing import check_scheduler
from cbsim.workload import WORKLOADS

PACKAGE = Path(__file__).parent / "package"
EXPERIMENT = {
    "name": "toy",
    "model": "tiny",
    "gpu": "h200",
    "workload": {"type": "ramp", "num": 50, "growth_per_s2": 2.0},
    "scheduler": {"type": "gentle", "max_num_seqs": 8},
    "kv_cache": {"num_blocks": 200},
    "cost_model": {"type": "per_token", "token_s": 0.001},
}


def install(package: Path, site: Path) -> None:
    """What `pip install --target` leaves, without the network that a build would need."""
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    shutil.copytree(package / "cbsim_toy", site / "cbsim_toy", ignore=shutil.ignore_patterns("__pycache__"))
    info = site / f"cbsim_toy-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    lines = []
    for group, names in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {target}" for name, target in names.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site-packages"
    folder.mkdir()
    install(PACKAGE, folder)
    return folder


@pytest.fixture
def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(site)
    for name in [name for name in sys.modules if name.split(".")[0] == "cbsim_toy"]:
        monkeypatch.delitem(sys.modules, name)


def test_without_the_package_its_names_are_unknown() -> None:
    with pytest.raises(ConfigError, match="gentle"):
        cbsim.run(EXPERIMENT)


@pytest.mark.usefixtures("installed")
def test_installed_parts_stand_beside_the_built_in_ones() -> None:
    assert SCHEDULERS.names() == [*SCHEDULERS.builtin_names(), "gentle"]
    assert WORKLOADS.names()[-1] == "ramp"
    assert COST_MODELS.names()[-1] == "per_token"
    assert OBSERVERS.names() == [*OBSERVERS.builtin_names(), "away"]


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("engine", ["interpreted", "compiled"])
def test_an_experiment_runs_on_all_three(engine: str) -> None:
    result = cbsim.run({**EXPERIMENT, "engine": engine})
    assert result.summary["num_finished"] == 50
    # The first request, alone: 100 prompt tokens at 1 ms, then 9 decodes.
    assert result.requests["ttft_s"][0] == pytest.approx(0.1)
    assert result.requests["arrival_s"][49] == 7.0
    # One newcomer a step: no step computes two prompts that begin.
    assert result.steps["num_prefill_seqs"].max() == 1


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("name", ["away", "cbsim_toy.away:AwayObserver"])
def test_its_observer_watches_and_writes_its_file(tmp_path: Path, name: str) -> None:
    """Two prompts fit at once, seven blocks each; with their answers they need ten each."""
    tight = EXPERIMENT | {
        "workload": {"type": "ramp", "num": 50, "growth_per_s2": 50.0, "num_output_tokens": 60},
        "scheduler": "vllm",
        "kv_cache": {"num_blocks": 18},
    }
    result = cbsim.run(tight | {"observers": [{"type": name, "min_s": 0.01}]}, out=tmp_path / "run")
    lines = (tmp_path / "run" / "away.csv").read_text().splitlines()
    assert lines[0] == "request_id,away_s"
    away = [float(line.split(",")[1]) for line in lines[1:]]
    assert 0 < len(away) < result.summary["num_preemptions"]
    assert min(away) >= 0.01


@pytest.mark.usefixtures("installed")
def test_their_settings_are_checked_like_any_other() -> None:
    wrong = {**EXPERIMENT, "scheduler": {"type": "gentle", "max_num_seq": 8}}
    with pytest.raises(
        ConfigError, match=r"scheduler\.max_num_seq: unknown key; did you mean 'max_num_seqs'"
    ):
        cbsim.run(wrong)
    with pytest.raises(ConfigError, match=r"observers\[0\]\.min_s: got -1; expected a number >= 0"):
        cbsim.run({**EXPERIMENT, "observers": [{"type": "away", "min_s": -1}]})


@pytest.mark.usefixtures("installed")
def test_the_scheduler_keeps_the_laws() -> None:
    check_scheduler("gentle", num_cases=60)


def test_the_command_line_runs_it_in_a_process_of_its_own(site: Path, tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text(json.dumps(EXPERIMENT))
    paths = [str(site), str(Path(cbsim.__file__).parents[1])]
    done = subprocess.run(
        [sys.executable, "-m", "cbsim", "run", "toy.yaml", "--out", "toy"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "toy" / "summary.json").read_text())["num_finished"] == 50


@pytest.mark.parametrize(("part", "module"), [("schedulers", "gentle"), ("observers", "away")])
def test_what_readers_are_shown_is_in_the_package(part: str, module: str) -> None:
    readme = (Path(cbsim.__file__).parent / part / "README.md").read_text()
    shown = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert (PACKAGE / "cbsim_toy" / f"{module}.py").read_text() in shown
