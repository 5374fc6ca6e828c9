"""Bad inputs of every kind, two thousand by seed: none leads to a traceback, a hang or accepted nonsense."""

import subprocess
import sys


def test_bad_inputs_are_told_in_lines_and_in_time():
    command = [sys.executable, "-m", "tests.fuzz", "--cases", "2000", "--seed", "19"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "2,000 cases" in ran.stdout
