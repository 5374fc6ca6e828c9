"""What is written for readers holds: commands and their output, links, and every YAML file that is shipped.

A fenced block whose info string is `console test` is run line by line (`$ command`) in a folder that sees the
checkout's; what stands under a command must be what it prints. A line `...` stands for any lines.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from contextlib import chdir
from pathlib import Path
from typing import NamedTuple

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
SHELL = set("|&;<>$*")
"""Characters that leave a line to the shell."""
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


def run_line(line: str, folder: Path) -> tuple[int, str, str]:
    """The exit code, standard output and error of a line; `cbsim` alone needs no process of its own."""
    if line.startswith("cbsim ") and SHELL.isdisjoint(line):
        with chdir(folder):
            called = CliRunner(env={"COLUMNS": "120"}).invoke(main, shlex.split(line)[1:])
        return called.exit_code, called.stdout, called.stderr
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "COLUMNS": "120"}
    ran = subprocess.run(
        line, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    return ran.returncode, ran.stdout, ran.stderr


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
