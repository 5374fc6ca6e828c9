"""What the commands that need torch say where it is not installed."""

from __future__ import annotations

import subprocess
import sys

import pytest

WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; from cbsim.cli import main; main()"


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`cbsim` in a process where importing torch fails."""
    command = [sys.executable, "-c", WITHOUT_TORCH, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize(
    "arguments",
    [
        ("live", "play"),
        ("validate", "calibration/validate.yaml"),
        ("calibrate", "--model", "tiny", "--device", "cpu", "--out", "nowhere"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_one_line_names_the_extra(arguments: tuple[str, ...]) -> None:
    ended = call(*arguments)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert "needs torch: pip install 'cbsim[torch]'" in line


@pytest.mark.parametrize("command", ["live", "validate", "calibrate"])
def test_help_is_there(command: str) -> None:
    ended = call(command, "--help")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith(f"Usage: -c {command}")
