"""The README's other code holds too: its experiment is right, its Python runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from cbsim.cli.command_line import preview
from cbsim.studies.experiment import Experiment

TEXT = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("block", blocks("yaml"))
def test_experiments_are_right(block: str) -> None:
    assert "3 points" in preview(Experiment.from_mapping(yaml.safe_load(block)))


@pytest.mark.parametrize("block", blocks("python"))
def test_python_runs(block: str, repo_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repo_root)
    names: dict[str, object] = {}
    exec(block, names)
    assert len(names["slow"]) == 10  # type: ignore[arg-type]


def test_there_are_some_of_both() -> None:
    assert blocks("yaml")
    assert blocks("python")
