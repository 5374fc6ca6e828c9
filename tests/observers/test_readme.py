"""What the README of observers shows holds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import cbsim
from cbsim.observers import OBSERVERS
from cbsim.observers.audience import HOOKS
from cbsim.studies.experiment import Experiment

TEXT = (Path(cbsim.__file__).parent / "observers" / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def test_the_observer_of_a_notebook_runs(
    repo_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(repo_root)
    names: dict[str, Any] = {}
    exec(blocks("python")[0], names)
    requests = names["result"].requests
    slowest = requests.loc[requests["ttft_s"].idxmax()]
    assert capsys.readouterr().out == f"{slowest['request_id']} {slowest['ttft_s']}\n"


def test_the_observers_of_an_experiment_are_right() -> None:
    settings = yaml.safe_load(blocks("yaml")[0])
    workload = {"type": "trace", "path": "azure-like.csv"}
    experiment = Experiment.from_mapping({"workload": workload, "scheduler": "vllm", **settings})
    assert {config.type for config in experiment.observers} == set(OBSERVERS.builtin_names())


def test_every_hook_every_need_and_every_built_in_observer_is_told() -> None:
    for name in (*HOOKS, "on_run_start", "on_run_end"):
        assert f"| `{name}(" in TEXT
    for name in OBSERVERS.builtin_names():
        assert f"| `{name}` |" in TEXT
    assert re.findall(r"^\| `([A-Z]+)` \|", TEXT, re.MULTILINE) == ["REQUESTS", "STEPS", "STATE"]
