"""Errors of third parties' parts name the part and its line; those of cbsim's own stay what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import cbsim
from cbsim.base.errors import CbsimError, PluginError, blaming, plugin_error, told_in_one_line
from cbsim.cli import main
from cbsim.schedulers.vllm import VllmScheduler

MODULE = """from cbsim.cost import CostModel
from cbsim.config.section import ComponentConfig
from cbsim.schedulers import Scheduler, SchedulerConfig
from cbsim.schedulers.vllm import VllmScheduler
from cbsim.workload import Workload, WorkloadConfig


def look_up(requests, name):
    return requests[name]  # line 9


class Broken(Scheduler):
    Config = SchedulerConfig

    def decide(self, step):
        look_up({}, "r3")


class Unmade(VllmScheduler):
    Config = VllmScheduler.Config

    def __init__(self, config, resources):
        raise ValueError("no")  # line 23


class BrokenCost(CostModel):
    Config = ComponentConfig

    def step_s(self, shape):
        return int("many")  # line 30


class BrokenWorkload(Workload):
    Config = WorkloadConfig

    def requests(self):
        import numpy
        numpy.zeros(3).reshape(2, 2)  # line 38
        yield

    def num_requests(self):
        return 1


class Sound(VllmScheduler):
    Config = VllmScheduler.Config
"""
WHAT_FAILS = {
    "scheduler=erring_parts:Broken": "scheduler Broken failed at 0.0635078 s: "
    "KeyError: 'r3' (erring_parts.py:9)",
    "scheduler=erring_parts:Unmade": "erring_parts.py:22: `__init__`: a scheduler has no instances; allowed: "
    "rules alone",
    "cost_model=erring_parts:BrokenCost": "cost model BrokenCost failed at 0.0635078 s: ValueError: "
    "invalid literal for int() with base 10: 'many' (erring_parts.py:30)",
    "workload=erring_parts:BrokenWorkload": "workload BrokenWorkload failed at 0 s: ValueError: "
    "cannot reshape array of size 3 into shape (2,2) (erring_parts.py:38)",
}
EXPERIMENT = """
workload: {type: trace, path: azure-like.csv, limit: 3}
scheduler: vllm
cost_model: {type: constant, step_s: 1.0}
"""


@pytest.fixture(autouse=True)
def _broken_parts_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "erring_parts.py").write_text(MODULE, encoding="utf-8")
    (tmp_path / "e.yaml").write_text(EXPERIMENT, encoding="utf-8")
    monkeypatch.chdir(tmp_path)


def run(setting: str) -> Result:
    return CliRunner().invoke(main, ["run", "e.yaml", "--quiet", "--set", setting])


@pytest.mark.parametrize("setting", WHAT_FAILS)
def test_the_line_tells_part_file_and_line(setting: str) -> None:
    ran = run(setting)
    assert (ran.exit_code, ran.output) == (2, WHAT_FAILS[setting] + "\n")


def test_a_traceback_is_printed_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CBSIM_TRACEBACK", "1")
    ran = run("scheduler=erring_parts:Broken")
    assert ran.exit_code == 2
    assert ran.output.startswith("Traceback (most recent call last):\n")
    assert 'erring_parts.py", line 9, in look_up' in ran.output
    assert ran.output.endswith(f"\n{WHAT_FAILS['scheduler=erring_parts:Broken']}\n")


def test_the_part_entered_last_is_the_culprit() -> None:
    """A scheduler of a third party isn't blamed for a cost model of the same module, nor is that for it."""
    mapping: dict[str, Any] = {
        "workload": {"type": "trace", "path": "azure-like.csv", "limit": 3},
        "scheduler": {"type": "erring_parts:Sound"},
        "cost_model": {"type": "erring_parts:BrokenCost"},
    }
    with pytest.raises(PluginError, match=r"^cost model BrokenCost failed at .* \(erring_parts.py:30\)$"):
        cbsim.run(mapping)
    with pytest.raises(PluginError, match=r"^scheduler Broken failed at .* \(erring_parts.py:9\)$"):
        cbsim.run({**mapping, "scheduler": {"type": "erring_parts:Broken"}})


def test_cbsims_own_parts_are_no_culprits() -> None:
    assert plugin_error(ValueError("a bug"), {"scheduler": VllmScheduler}) is None
    with pytest.raises(ValueError, match="a bug"), blaming("scheduler", VllmScheduler):
        raise ValueError("a bug")


def test_what_a_part_handed_over_is_told_without_a_line() -> None:
    part = type("Mine", (), {"__module__": "mine"})
    failure = plugin_error(ValueError("of 3"), {"workload": VllmScheduler, "cost model": part}, " at 2 s")
    assert str(failure) == "cost model Mine failed at 2 s: ValueError: of 3"


def test_words_of_cbsim_are_kept() -> None:
    assert told_in_one_line(CbsimError("the tea\nis cold"), __name__) == "the tea is cold"
