"""What the commands that need torch say where it is not installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

NEEDS_TORCH = {
    "live": ("play",),
    "validate": ("calibration/validate.yaml",),
    "calibrate": ("--model", "tiny", "--device", "cpu", "--out", "nowhere"),
}
WITHOUT_TORCH = """
import json, sys
sys.modules["torch"] = None
from click.testing import CliRunner
from cbsim.cli import main
called = [CliRunner().invoke(main, each) for each in json.loads(sys.argv[1])]
print(json.dumps([[each.exit_code, each.stdout, each.stderr] for each in called]))
"""


@pytest.fixture(scope="module")
def ended() -> dict[tuple[str, ...], tuple[int, str, str]]:
    """What commands end with, print and tell in a process where importing torch fails."""
    lines = [(name, *more) for name, words in NEEDS_TORCH.items() for more in (words, ("--help",))]
    command = [sys.executable, "-c", WITHOUT_TORCH, json.dumps(lines)]
    ran = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=60)
    return dict(zip(lines, json.loads(ran.stdout), strict=True))


@pytest.mark.parametrize("name", NEEDS_TORCH)
def test_one_line_names_the_extra(name, ended):
    code, _, errors = ended[name, *NEEDS_TORCH[name]]
    assert code == 2
    (line,) = errors.splitlines()
    checkout = Path(__file__).resolve().parents[2]
    assert f"needs torch: pip install -e '{checkout}[torch]'" in line


@pytest.mark.parametrize("name", NEEDS_TORCH)
def test_help_is_there(name, ended):
    code, printed, errors = ended[name, "--help"]
    assert (code, errors) == (0, "")
    assert printed.startswith(f"Usage: main {name}")
