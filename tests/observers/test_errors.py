"""An observer that errs ends the run with its name, and harms no folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import cbsim
from cbsim.base.errors import CbsimError, ConfigError, PluginError
from cbsim.cli import main
from cbsim.observers import Observer
from cbsim.observers.audience import HOOKS
from cbsim.studies.experiment import Experiment
from tests.observers.watched import StepNotes, row, setting, watch

ROWS = [row("a", 0.5, 7, 4), row("b", 0.5, 7, 4)]
EXPERIMENT: dict[str, Any] = {
    "name": "erring",
    "workload": {"type": "trace", "path": "azure-like.csv", "limit": 5},
    "scheduler": "vllm",
    "cost_model": {"type": "constant", "step_s": 1.0},
}


def failing(hook: str) -> Observer:
    """An observer with one hook, which raises."""

    def fail(self: Observer, *arguments: Any) -> None:
        raise ValueError("no such luck")

    return type("Unlucky", (Observer,), {hook: fail})()


@pytest.mark.parametrize("hook", [*HOOKS, "on_run_start", "on_run_end"])
def test_every_hook_is_named_with_the_instant(hook: str) -> None:
    at_s = {"on_run_start": 0, "on_first_token": 1.5, "after_step": 1.5, "on_preempted": 2.5}
    at_s |= {"on_finished": 4.5, "on_run_end": 6.5}
    told = f"observer Unlucky failed in {hook} at {at_s.get(hook, 0.5):g} s: ValueError: no such luck"
    line = failing.__code__.co_firstlineno + 4
    with pytest.raises(PluginError) as caught:
        watch(setting(num_blocks=4), ROWS, StepNotes(), failing(hook))
    assert str(caught.value) == f"{told} (test_errors.py:{line})"
    cause: BaseException | None = caught.value
    while isinstance(cause, PluginError):  # SimPy puts itself between
        cause = cause.__cause__
    assert isinstance(cause, ValueError)


def test_a_message_of_cbsim_s_own_is_kept_as_it_is() -> None:
    class Told(Observer):
        def on_run_end(self, now: float) -> None:
            raise CbsimError("the tea is cold")

    with pytest.raises(PluginError, match=r"^observer Told failed in on_run_end at 6.5 s: the tea is cold$"):
        watch(setting(num_blocks=4), ROWS, Told())


class Stillborn(Observer):
    """Can't be made."""

    def __init__(self, config: Any = None) -> None:
        raise ValueError("no luck")


def test_an_observer_that_can_not_be_made_is_named() -> None:
    named = {**EXPERIMENT, "observers": [f"{__name__}:Stillborn"]}
    told = r"^config: observers: observer Stillborn failed: ValueError: no luck \(test_errors.py:"
    with pytest.raises(ConfigError, match=told):
        cbsim.run(named)


def test_a_failed_run_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(PluginError):
        cbsim.run(EXPERIMENT, out=tmp_path / "run", observers=[failing("after_step")])
    assert list(tmp_path.iterdir()) == []


class Writes(Observer):
    """Writes a file, or what `write` does instead."""

    def __init__(self, name: str = "mine.txt", write: Callable[[Path], Any] | None = None) -> None:
        super().__init__()
        self.name = name
        self.write = write or (lambda path: path.write_text("mine"))

    def files(self) -> Mapping[str, Callable[[Path], None]]:
        return {self.name: self.write}


def divide(path: Path) -> None:
    path.write_text("begun")
    print(1 / 0)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (divide, "observer Writes can't write mine.txt: ZeroDivisionError: division by zero"),
        (lambda path: None, "observer Writes has not written mine.txt"),
        (lambda path: (path / "x").write_text(""), r".*can't be written: No such file or directory"),
    ],
)
def test_a_file_that_can_not_be_written_leaves_the_old_folder_as_it_was(
    tmp_path: Path, write: Callable[[Path], Any], message: str
) -> None:
    folder = tmp_path / "run"
    cbsim.run(EXPERIMENT, out=folder, observers=[Writes()])
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(CbsimError, match=message):
        cbsim.run(EXPERIMENT, out=folder, observers=[Writes(write=write)])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder]


def test_files_that_clash_are_told_before_the_run() -> None:
    further = [Writes("summary.json"), Writes("a.txt"), Writes("a.txt"), Writes("../b.txt"), StepNotes()]
    with pytest.raises(PluginError) as caught:
        cbsim.run(EXPERIMENT, observers=further)
    assert caught.value.problems == (
        "observer Writes: file 'summary.json' is written by the run itself too",
        "observer Writes: file 'a.txt' is written by observer Writes too",
        "observer Writes: file '../b.txt': expected a file's name: up to 100 letters, "
        "digits, blanks and any of _.+=,-",
    )
    assert not hasattr(further[-1], "calls")


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ({"files": lambda self: None}, "files gave None; expected a mapping"),
        ({"files": lambda self: {3: divide}}, "file 3: expected a file's name"),
        ({"files": lambda self: {"a\nb": divide}}, r"file 'a\\nb': expected a file's name"),
        ({"needs": "steps"}, "has no needs: ValueError: 'steps' is not a valid Needs"),
        ({"on_run_end": lambda self, now: {}["two\nlines"]}, r"failed in on_run_end at .* s: KeyError: .*"),
        ({"on_run_end": lambda self, now: int("1\n2", 40)}, r"failed in on_run_end at .* s: ValueError: .*"),
    ],
)
def test_whatever_is_wrong_with_one_is_told_in_a_line(members: dict[str, Any], told: str) -> None:
    with pytest.raises(PluginError, match=rf"^observer Odd:? {told}") as caught:
        cbsim.run(EXPERIMENT, observers=[type("Odd", (Observer,), members)()])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", [StepNotes, "log", None])
def test_what_is_no_observer_is_told(wrong: Any) -> None:
    with pytest.raises(PluginError, match=r"^observers: got .*; expected instances of Observer$"):
        cbsim.run(EXPERIMENT, observers=[wrong])


def test_a_run_replaces_a_run_with_observers_files_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    cbsim.run(EXPERIMENT, out=folder, observers=[Writes()])
    assert json.loads((folder / "manifest.json").read_text())["observer_files"] == ["mine.txt"]
    cbsim.run(EXPERIMENT, out=folder)
    assert not (folder / "mine.txt").exists()
    (folder / "mine.txt").write_text("the user's own")
    with pytest.raises(CbsimError, match=r"holds 'mine.txt', which no run has written"):
        cbsim.run(EXPERIMENT, out=folder)


BUILT_IN = "a mapping with type: log, metrics, memory, csv"
MODULE = '''
from cbsim.observers import Observer

class Broken(Observer):
    """Raises."""
    def on_finished(self, now, request, replica):
        raise KeyError(request.request_id)
'''


def test_on_the_command_line_it_is_one_line_and_exit_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("erring_observers.py").write_text(MODULE)
    Path("e.yaml").write_text(json.dumps({**EXPERIMENT, "observers": ["erring_observers:Broken"]}))
    ran = CliRunner().invoke(main, ["run", "e.yaml", "--out", "run"])
    assert ran.exit_code == 2
    # r2 comes 0.7 s after r0, during step 0, when step 1 is decided already; it has 64 tokens.
    assert (
        ran.output
        == "observer Broken failed in on_finished at 66.0635 s: KeyError: 'r2' (erring_observers.py:7)\n"
    )
    assert not Path("run").exists()


def test_a_name_alone_can_be_set_like_a_mapping() -> None:
    settings = {**EXPERIMENT, "observers": ["log", {"type": "csv"}]}
    overrides = ["observers.0.file=a.log", "observers.1.steps=true"]
    experiment = Experiment.from_mapping(settings, overrides)
    assert [config.model_dump() for config in experiment.observers] == [
        {"type": "log", "events": True, "steps": False, "every": 1, "file": "a.log"},
        {"type": "csv", "events": True, "steps": True},
    ]


@pytest.mark.parametrize(
    ("observers", "lines"),
    [
        (["lg"], ["e.yaml:1: observers[0]: unknown observer 'lg'; did you mean 'log'?"]),
        (
            [{"type": "log", "evry": 3}, {"type": "memory", "every": 0}],
            [
                "e.yaml:1: observers[0].evry: unknown key; did you mean 'every'?",
                "e.yaml:1: observers[1].every: got 0; expected an integer >= 1",
            ],
        ),
        (
            [{"every": 3}, 7],
            [
                f"e.yaml:1: observers[0]: has no type; expected {BUILT_IN}",
                f"e.yaml:1: observers[1]: got 7; expected {BUILT_IN}",
            ],
        ),
        (
            [{"type": "nowhere:Nobody"}],
            [
                "e.yaml:1: observers[0].type: observer 'nowhere:Nobody': can't import module 'nowhere': "
                "No module named 'nowhere'; looked in HERE and among what is installed"
            ],
        ),
    ],
)
def test_mistakes_in_the_file_are_told_all_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, observers: Any, lines: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("e.yaml").write_text(json.dumps({**EXPERIMENT, "observers": observers}))
    ran = CliRunner().invoke(main, ["check", "e.yaml", "--plugins"])
    assert ran.exit_code == 2
    assert ran.output.splitlines() == [line.replace("HERE", str(tmp_path)) for line in lines]
