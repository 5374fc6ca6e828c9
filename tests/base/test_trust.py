"""Whose code runs, and which files are read, on behalf of a configuration."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import cbsim
from cbsim.base import registry
from cbsim.base.errors import CbsimError
from cbsim.cli import main
from cbsim.schedulers import SCHEDULERS

THEIRS = """
from pathlib import Path
Path({trace!r}).write_text("was here")
from cbsim.schedulers.continuous import ContinuousScheduler
class Theirs(ContinuousScheduler): pass
"""
EXPERIMENT = """\
workload: {type: trace, path: t.csv}
scheduler: {type: "theirs:Theirs"}
cost_model: {type: constant, step_s: 0.25}
"""
TRACE = "arrived_at,num_prefill_tokens,num_decode_tokens\n0,100,3\n0.5,50,2\n"
REFUSED = (
    "would run the code of a module, which this command does not do; allowed: --plugins, where you trust it"
)
NO_PLUGINS = "is a plug-in, whose code would run; --no-plugins allows cbsim's own alone"


@pytest.fixture(autouse=True)
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stranger's folder, in which one stands; whether their code ran is told by the file `ran`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "theirs", raising=False)
    (tmp_path / "theirs.py").write_text(THEIRS.format(trace=str(tmp_path / "ran")))
    (tmp_path / "t.csv").write_text(TRACE)
    (tmp_path / "e.yaml").write_text(EXPERIMENT)
    return tmp_path


def command(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), catch_exceptions=False)


def test_commands_that_look_on_run_no_code_of_the_folder_unless_told_to(theirs: Path) -> None:
    assert command("run", "e.yaml", "--out", "out").exit_code == 0
    (theirs / "ran").unlink()
    sys.modules.pop("theirs")
    assert command("explain", "out").exit_code == 0
    assert command("report", "out").exit_code == 0
    assert command("compare", "out", "out").exit_code == 0
    refused = ("check", "e.yaml"), ("workload", "stats", "e.yaml"), ("explain", "out", "--steps", "0:2")
    for line in refused:
        looked = command(*line)
        assert looked.exit_code == 2
        assert REFUSED in looked.stderr
        assert not (theirs / "ran").exists()
    for line in refused:
        assert command(*line, "--plugins").exit_code == 0
    assert (theirs / "ran").exists()


@pytest.mark.parametrize("line", [("--no-plugins", "run", "e.yaml"), ("run", "e.yaml", "--no-plugins")])
def test_no_plugins_refuses_them_anywhere_on_the_line(theirs: Path, line: tuple[str, ...]) -> None:
    ran = command(*line)
    assert ran.exit_code == 2
    assert ran.stderr == f"e.yaml:2: scheduler.type: scheduler 'theirs:Theirs' {NO_PLUGINS}\n"
    assert not (theirs / "ran").exists()


def test_in_python_too_and_entry_points_with_them(monkeypatch: pytest.MonkeyPatch, theirs: Path) -> None:
    installed = EntryPoints([EntryPoint("own", "theirs:Theirs", "cbsim.schedulers")])
    monkeypatch.setattr(registry, "entry_points", installed.select)
    with cbsim.no_plugins():
        for name in ("own", "theirs:Theirs"):
            with pytest.raises(CbsimError, match=NO_PLUGINS):
                cbsim.run("e.yaml", overrides={"scheduler": {"type": name}})
        assert cbsim.run("e.yaml", overrides={"scheduler": {"type": "static"}}).summary["num_finished"] == 2
    assert not (theirs / "ran").exists()
    assert SCHEDULERS.get("own").__name__ == "Theirs"
    assert (theirs / "ran").exists()


def test_what_a_strangers_configuration_may_read_and_write(theirs: Path, tmp_path_factory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "secret.csv").write_text(TRACE)
    (elsewhere / "gpu.yaml").write_text("name: mine\n")
    (theirs / "link.csv").symlink_to(elsewhere / "secret.csv")
    own = {"scheduler.type": "static"}
    with cbsim.no_plugins():
        cbsim.run("e.yaml", overrides=own)
        cbsim.run("e.yaml", overrides=own | {"workload.path": "azure-like.csv", "stop_at_s": 1})
        for setting in (
            {"workload.path": str(elsewhere / "secret.csv")},
            {"workload.path": f"../{elsewhere.name}/secret.csv"},
            {"workload.path": "link.csv"},
            {"gpu": str(elsewhere / "gpu.yaml")},
            {"cost_model": {"type": "profile", "profile": str(theirs)}},
            {"observers": [{"type": "metrics", "live_file": str(elsewhere / "live.prom")}]},
        ):
            (theirs / "cost.json").write_text("{}")
            with pytest.raises(CbsimError, match="leads elsewhere; --no-plugins allows"):
                cbsim.run("e.yaml", overrides=own | setting)
    assert sorted(path.name for path in elsewhere.iterdir()) == ["gpu.yaml", "secret.csv"]
    for name in ("../up", "a/b", "/tmp/x", ".."):
        with pytest.raises(CbsimError, match="expected a folder's name"):
            cbsim.run("e.yaml", overrides=own | {"name": name})
    live = f"observers=[{{type: metrics, live_file: {elsewhere / 'live.prom'}}}]"
    checked = command("check", "e.yaml", "--no-plugins", "--set", "scheduler.type=static", "--set", live)
    assert checked.exit_code == 2  # what passes a check runs
    assert checked.stderr.startswith("--set: observers: ")


def test_parts_of_cbsim_are_found_without_the_current_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a `matplotlib.py` may lie, which must not be what is imported later on."""
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each not in ("", str(Path.cwd()))])
    before = [*sys.path]
    assert SCHEDULERS.get("static").__name__ == "StaticScheduler"
    assert sys.path == before
