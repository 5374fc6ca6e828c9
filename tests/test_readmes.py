"""What is written for readers holds: commands and their output, links, and every YAML file that is shipped.

A fenced block whose info string is `console test` is run line by line (`$ command`) in a folder that sees the
checkout's; what stands under a command must be what it prints. A line `...` stands for any lines.
"""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from contextlib import chdir
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import click
import pytest
from click.testing import CliRunner

from cbsim.base.paths import YAML_SUFFIXES
from cbsim.cli.command_line import main, preview
from cbsim.cli.commands.workload_command import load_workload
from cbsim.studies.experiment import Experiment

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("calibration", "configs", "experiments", "workloads")
READMES = sorted(
    [ROOT / "README.md", *(path for name in ("cbsim", *FOLDERS) for path in (ROOT / name).rglob("*.md"))]
)
ALONE = re.compile(
    r"""((?:cbsim|python) (?:'[^']*'|"[^"]*"|[^'"|<>;&])*?)( 2>/dev/null| 2>&1)?( \|\| true)?"""
)
"""A line that runs one program, and perhaps says where its errors go, or that any exit code is right."""
LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)#]+)")


class Command(NamedTuple):
    """A command shown to readers, and the lines shown under it."""

    line: str
    shown: list[str]


def commands(text: str, marked: str = "console test") -> list[list[Command]]:
    """The commands of each fenced block whose info string matches."""
    blocks = []
    for block in re.findall(rf"^```(?:{marked})\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        found: list[Command] = []
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append(Command(line[2:], []))
            elif found:
                found[-1].shown.append(line)
        blocks.append(found)
    return blocks


def matches(shown: list[str], printed: list[str]) -> bool:
    """Whether the lines shown are those printed; `...` stands for any number of lines."""
    pattern = "".join(
        "(?:.*\n)*?" if line.strip() == "..." else re.escape(line.rstrip()) + "\n" for line in shown
    )
    return re.fullmatch(pattern, "".join(line.rstrip() + "\n" for line in printed)) is not None


MARKED = [
    pytest.param(block, id=f"{path.relative_to(ROOT)}-{number}")
    for path in READMES
    if path.is_file()
    for number, block in enumerate(commands(path.read_text(encoding="utf-8")))
]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with links to the checkout's data, so that what commands write doesn't land there."""
    for name in FOLDERS:
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


@pytest.mark.parametrize("block", MARKED)
def test_commands_print_what_is_shown(block: list[Command], checkout: Path) -> None:
    run_block(block, checkout)


def test_the_gallery_shows_of_the_quickstart_what_it_prints() -> None:
    """The top README has run it, pictures included."""
    (ran, *_), *_ = commands((ROOT / "README.md").read_text(encoding="utf-8"))
    (shown, *_), *_ = commands((ROOT / "experiments/README.md").read_text(encoding="utf-8"), "console")
    assert (ran.line, shown.line) == (
        "cbsim sweep experiments/quickstart.yaml", "cbsim sweep quickstart --no-plots",
    )  # fmt: skip
    assert shown.shown[:-1] == ran.shown[: len(shown.shown) - 1]
    assert shown.shown[-1] == "..."


def run_block(block: list[Command], checkout: Path) -> None:
    """Run commands one after another in a folder; each must succeed and print what is shown under it."""
    for command in block:
        returncode, printed, told = run_line(command.line, checkout)
        assert returncode == 0, f"{command.line}\n{told}"
        if command.shown:
            assert matches(command.shown, printed.splitlines()), f"{command.line} prints\n{printed}"


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def python(arguments: tuple[str, ...]) -> None:
    """What Python's own command does with `-c CODE` or with a file."""
    if arguments[0] == "-c":
        exec(arguments[1], {})
    else:
        with mock.patch.object(sys, "argv", list(arguments)):
            runpy.run_path(arguments[0], run_name="__main__")


def run_line(line: str, folder: Path) -> tuple[int, str, str]:
    """The exit code, standard output and error of a line; a program alone needs no process of its own."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    shell = {"env": {**os.environ, "PATH": path, "COLUMNS": "120"}, "cwd": folder, "capture_output": True}
    alone = ALONE.fullmatch(line)
    if alone is None:
        ran = subprocess.run(line, shell=True, text=True, timeout=120, **shell)  # type: ignore[call-overload]
        return ran.returncode, ran.stdout, ran.stderr
    words, errors, is_right = alone.groups()
    expanded = subprocess.run(f"printf '%s\\0' {words}", shell=True, check=True, **shell)  # type: ignore[call-overload]
    program, *arguments = expanded.stdout.decode().split("\0")[:-1]
    with chdir(folder):
        runner = CliRunner(env={"COLUMNS": "120"})
        called = runner.invoke(main if program == "cbsim" else python, arguments)
    # Into a pipe, what a program prints goes when it ends, errors at once.
    printed = (called.stderr if errors == " 2>&1" else "") + called.stdout
    return 0 if is_right else called.exit_code, printed, called.stderr


def test_how_shown_lines_are_compared() -> None:
    text = "a\n```console test\n$ one\nx\n...\nz\n$ two\n```\n```console\n$ not this\n```\n"
    assert commands(text) == [[Command("one", ["x", "...", "z"]), Command("two", [])]]
    assert matches(["x", "...", "z"], ["x", "z"])
    assert matches(["x", "...", "z"], ["x", "1", "2", "z"])
    assert not matches(["x", "...", "z"], ["x", "y"])
    assert not matches(["a.c"], ["abc"])


@pytest.mark.parametrize("path", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    targets = [link.strip() for link in LINK.findall(path.read_text(encoding="utf-8"))]
    assert [target for target in targets if not (path.parent / target).exists()] == []


def folders() -> list[Path]:
    """Every folder that a reader may open: the top, the packages of cbsim, and the data beside it."""
    packages = [path.parent for path in (ROOT / "cbsim").rglob("*.py")]
    data = [path.parent for name in FOLDERS for path in (ROOT / name).rglob("*.yaml")]
    tops = [ROOT, ROOT / "tests", *(ROOT / name for name in FOLDERS)]
    return sorted({*packages, *data, *tops})


@pytest.mark.parametrize("folder", folders(), ids=lambda folder: str(folder.relative_to(ROOT)))
def test_every_folder_says_what_lies_in_it(folder: Path) -> None:
    assert (folder / "README.md").is_file()


def shipped(folder: str) -> list[Path]:
    return sorted(path for path in (ROOT / folder).rglob("*") if path.suffix in YAML_SUFFIXES)


@pytest.mark.parametrize("path", shipped("experiments"), ids=lambda path: path.stem)
def test_every_shipped_experiment_is_right(path: Path) -> None:
    assert "requests" in preview(Experiment.load(path))


@pytest.mark.parametrize("path", shipped("configs"), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_shipped_configuration_is_right(path: Path) -> None:
    section = path.parent.name.removesuffix("s")
    mapping = {
        "workload": {"type": "trace", "path": "azure-like.csv"},
        "scheduler": "continuous",
        "kv_cache": {"num_blocks": 1000},
        section: path.stem,
    }
    experiment = Experiment.from_mapping(mapping)
    assert getattr(experiment, section) is not None
    if section in ("model", "gpu"):
        assert getattr(experiment, section).name == path.stem


@pytest.mark.parametrize("path", shipped("workloads"), ids=lambda path: path.stem)
def test_every_shipped_generator_is_right(path: Path) -> None:
    assert next(load_workload(str(path)).requests()).num_prompt_tokens > 0
