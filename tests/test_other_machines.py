"""What keeps cbsim at work on macOS and Windows, as far as a machine of another kind can tell."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cbsim.base.paths import is_file_name, scratch_folder

PACKAGE = Path(__file__).parents[1] / "cbsim"
SOURCES = sorted(PACKAGE.rglob("*.py"))
POSIX = {
    *("fcntl", "termios", "tty", "pty", "pwd", "grp", "resource", "syslog", "posix", "curses", "readline"),
    *(f"os.{name}" for name in ("fork", "forkpty", "killpg", "setsid", "setpgid", "getpgid", "getuid")),
    *(f"os.{name}" for name in ("geteuid", "getgid", "mkfifo", "uname", "nice", "chown", "wait", "waitpid")),
    *(
        f"os.{name}"
        for name in ("sched_getaffinity", "sched_setaffinity", "getloadavg", "statvfs", "sysconf")
    ),
    *(f"signal.{name}" for name in ("SIGALRM", "SIGKILL", "SIGHUP", "SIGWINCH", "SIGTSTP", "SIGUSR1")),
    *(f"signal.{name}" for name in ("alarm", "setitimer", "pthread_sigmask", "pthread_kill", "sigwait")),
}
"""Modules and functions that Windows lacks."""
MARKED = {
    "base/paths.py": {"fcntl"},
    "base/translation.py": {"os.fork", "os.waitpid", "signal.SIGKILL"},
    "cli/play/terminal.py": {"termios", "signal.SIGWINCH", "signal.SIGHUP", "signal.SIGTSTP"},
    "lab/kernels/timing.py": {"os.sysconf"},
    "lab/bench/work_timing.py": {"resource", "os.getloadavg"},
    "studies/worker_pool.py": {"signal.pthread_sigmask"},
}
"""Where they are asked for first, or are of a command that says what it needs."""


def _uses(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}"


def test_what_windows_lacks_is_used_in_marked_places_alone() -> None:
    trees = {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text("utf-8")) for path in SOURCES}
    found = {name: {*_uses(tree)} & POSIX for name, tree in trees.items()}
    assert {name: used for name, used in found.items() if used} == MARKED


def test_text_files_have_the_same_bytes_everywhere() -> None:
    """Each is opened with its encoding, and written with its own line ends."""
    wrong = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name)):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            if (
                name not in ("open", "fdopen", "read_text", "write_text")
                or ast.unparse(node.func) == "os.open"
            ):
                continue
            if name in ("read_text", "write_text") and isinstance(node.func, ast.Name):
                continue  # those of `base`, which are looked at where they stand
            texts = (each.value for each in node.args if isinstance(each, ast.Constant))
            mode = next(
                (text for text in texts if isinstance(text, str) and set(text) <= set("rwxab+t")), "r"
            )
            given = {each.arg for each in node.keywords}
            is_written = name == "write_text" or set(mode) & set("wxa")
            if "b" not in mode and not ({"encoding", *(["newline"] if is_written else [])} <= given):
                wrong.append(f"{path.relative_to(PACKAGE)}:{node.lineno}: {ast.unparse(node)[:60]}")
    assert wrong == []


@pytest.mark.parametrize(
    "name", ["a", "chat-1a2b3c4d", "a b", "über", "x" * 100, "console", "com", "a.con", "aux1"]
)
def test_names_for_files_of_any_system(name: str) -> None:
    assert is_file_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../a",
        "a/b",
        "a\\b",
        "a:b",
        "a*",
        'a"',
        "a|b",
        "a?",
        "<a>",
        "a.",
        "a ",
        ".a",
        "x" * 101,
        "con",
        "CON",
        "nul.txt",
        "Aux .x",
        "com1",
        "LPT9.parquet",
        "a\n",
        "a\x00",
    ],
)
def test_names_that_some_system_refuses_or_that_lead_elsewhere(name: str) -> None:
    assert not is_file_name(name)


BARE = """
import os, signal, sys
for name in ("fcntl", "pwd", "resource", "termios"):
    sys.modules[name] = None
del signal.pthread_sigmask, signal.SIGHUP, os.fork
from cbsim.cli import main
main()
"""


def bare(*line: str) -> subprocess.CompletedProcess[str]:
    """A command in a Python without what Windows lacks."""
    command = [sys.executable, "-c", BARE, *line]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_sweep_where_there_is_no_posix(tmp_path: Path) -> None:
    swept = "sweep={scheduler.max_num_seqs: [2, 4]}"
    ran = bare(
        "sweep", "play", "--set", swept, "--out", str(tmp_path / "out"), "--workers", "2", "--no-plots"
    )
    assert (ran.returncode, ran.stdout[-12:]) == (0, "et, points/\n"), ran.stderr
    assert bare("report", str(tmp_path / "out")).returncode == 0


@pytest.mark.parametrize(("command", "lacks"), [("play", "termios"), ("bench", "resource")])
def test_commands_that_need_posix_say_so(command: str, lacks: str) -> None:
    ran = bare(command)
    assert (ran.returncode, ran.stderr) == (
        2,
        f"{command}: needs a POSIX system: there is no '{lacks}' here\n",
    )


def test_scratch_folders_where_there_are_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cbsim.base.paths.fcntl", None)
    with scratch_folder(tmp_path / "run"), scratch_folder(tmp_path / "run"):
        assert len(list(tmp_path.iterdir())) == 2
    assert list(tmp_path.iterdir()) == []
