"""Standard output: full, closed or of a small encoding, in processes of their own; and signals to end."""

import multiprocessing.spawn
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cbsim.base.paths import written_whole
from cbsim.cli.command_line import clearing_up
from cbsim.cli.standard_output import standard_output


def cbsim(*arguments, closed=False, **settings):
    command = [sys.executable, "-m", "cbsim", *arguments]
    if closed:
        command = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, **settings)


def test_a_full_disk_is_told_in_a_line():
    with Path("/dev/full").open("w") as full:
        ran = cbsim("list", "models", stdout=full)
    assert (ran.returncode, ran.stderr) == (
        1,
        "standard output: can't be written: No space left on device\n",
    )


def test_a_closed_one_takes_no_file_s_place(tmp_path):
    ran = cbsim("schema", "--out", str(tmp_path), closed=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "\nwritten to" not in (tmp_path / "reference.md").read_text()


@pytest.mark.parametrize(("encoding", "sign"), [("latin-1", "<="), ("utf-8", "≤")])
def test_signs_that_an_encoding_lacks_are_spelt(encoding, sign, tmp_path):
    (tmp_path / "x≤y.yaml").write_text("seed: -1\n")
    told = cbsim(
        "check",
        "x≤y.yaml",
        stdout=subprocess.PIPE,
        cwd=tmp_path,
        env=os.environ | {"PYTHONIOENCODING": encoding},
        encoding=encoding,
    )
    assert f"x{sign}y.yaml:1: seed: got -1" in told.stderr


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_who_is_asked_to_end_clears_up(name, tmp_path):
    number = getattr(signal, name)
    with pytest.raises(SystemExit) as ended, clearing_up(), written_whole(tmp_path / "file"):
        signal.raise_signal(number)
    assert ended.value.code == 128 + number
    assert [*tmp_path.iterdir()] == []
    assert signal.getsignal(number) == signal.SIG_DFL


def test_workers_are_told_to_show_no_warnings_of_numpy_s(monkeypatch):
    monkeypatch.setattr(sys, "warnoptions", ["error::DeprecationWarning"])
    with standard_output():
        told = multiprocessing.spawn.get_command_line()
    assert "-Wignore::RuntimeWarning" in told
    assert told.index("-Wignore::RuntimeWarning") < told.index("-Werror::DeprecationWarning")
