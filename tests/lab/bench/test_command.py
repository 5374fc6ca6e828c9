"""`cbsim bench CONFIG` as a user meets it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner, Result

from cbsim.cli import main
from tests.lab.bench.small import GENERATOR, Bench, experiment


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    settings = experiment(GENERATOR).resolved()
    (tmp_path / "mine.yaml").write_text(json.dumps(settings))
    return tmp_path


def cbsim_bench(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["bench", *arguments], catch_exceptions=False)


@pytest.mark.usefixtures("bench")
def test_the_command_prints_tables_and_leaves_a_folder(folder: Path) -> None:
    arguments = ("mine.yaml", "--requests", "5,30", "--running", "none", "--replicas", "1,2")
    ran = cbsim_bench(*arguments)
    assert ran.exit_code == 0
    assert "By number of requests" in ran.stdout
    assert "running at once" not in ran.stdout
    assert "0 of 3 points, measuring 5 requests" in ran.stderr
    out = folder / "runs" / "mine-bench"
    names = {"bench.json", "table.csv", "table.parquet", "scaling.png", "scaling.svg"}
    assert {path.name for path in out.iterdir()} == names
    table = pd.read_csv(out / "table.csv")
    assert table["varied"].tolist() == ["requests", "requests", "replicas", "replicas"]
    assert table["value"].tolist() == [5, 30, 1, 2]
    told = json.loads(cbsim_bench(*arguments, "--json", "--quiet").stdout)
    assert [point["num_requests"] for point in told["points"]] == [5, 30, 5, 10]
    assert told["config"]["scheduler"]["type"] == "vllm"


@pytest.mark.usefixtures("folder")
def test_what_is_there_is_measured_again_on_demand(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cbsim.lab.bench.bench_tables.save_study", lambda *study: [])
    arguments = ("mine.yaml", "--requests", "5", "--running", "none", "--replicas", "none", "--quiet")
    for _ in range(2):
        assert cbsim_bench(*arguments).exit_code == 0
    assert bench.measured == [5]
    cbsim_bench(*arguments, "--again")
    assert bench.measured == [5, 5]


def test_a_stopped_command_shows_what_it_has(folder: Path, bench: Bench) -> None:
    bench.stop_after = 1
    ran = cbsim_bench("mine.yaml", "--requests", "5,30", "--out", "out", "--quiet")
    assert ran.exit_code == 130
    assert "By number of replicas" in ran.stdout
    assert ran.stderr == "\n1 of 7 points kept in out; the same call goes on\n"
    assert len(pd.read_csv(folder / "out" / "table.csv")) == 2


@pytest.mark.usefixtures("bench")
def test_nothing_else_is_written_over(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "mine.txt").write_text("mine")
    ran = cbsim_bench("mine.yaml", "--requests", "5", "--out", "out")
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert ran.stderr == (
        "out: a folder that is no scaling study stands there; name another folder, or remove it\n"
    )


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (
            ("mine.yaml", "--requests", "5,x", "--running", "0"),
            [
                "--requests: got 'x'; expected whole numbers from 1 to 1,000,000,000, as in 1,10,100",
                "--running: got '0'; expected whole numbers from 1 to 1,000,000,000, as in 1,10,100",
            ],
        ),
        (
            ("mine.yaml", "--requests", "none", "--running", "none", "--replicas", "none"),
            ["--requests, --running, --replicas: all are none; allowed: numbers for one of them at least"],
        ),
        (("mine.yaml", "--quick"), ["--quick: is for cbsim's own works, without a CONFIG"]),
        (
            ("--running", "8", "--set", "seed=1"),
            ["--running: needs a CONFIG to scale", "--set: needs a CONFIG to scale"],
        ),
        (("mime.yaml",), ["mime.yaml: no such file; did you mean 'mine.yaml'?"]),
    ],
)
def test_mistakes(arguments: tuple[str, ...], lines: list[str]) -> None:
    ran = cbsim_bench(*arguments)
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert ran.stderr.splitlines() == lines


def test_a_wrong_configuration_is_told_by_its_lines(folder: Path) -> None:
    (folder / "mine.yaml").write_text("workload: {type: trace, path: gone.csv}\nscheduler: vllm\n")
    ran = cbsim_bench("mine.yaml")
    assert ran.exit_code == 2
    assert ran.stderr.startswith("mine.yaml:1: workload.path: gone.csv: no such file")


def test_control_c_ends_all_in_a_line_and_keeps_the_points(folder: Path) -> None:
    """As a terminal does it: every process of the group gets the signal."""
    command = [sys.executable, "-m", "cbsim", "bench", "mine.yaml", "--requests", "20,5000000"]
    ran = subprocess.Popen(
        [*command, "--running", "none", "--replicas", "none", "--out", "out"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert ran.stderr is not None
    for line in ran.stderr:
        if line.startswith("1 of 2 points"):
            break
    time.sleep(0.3)
    os.killpg(ran.pid, signal.SIGINT)
    stdout, stderr = ran.communicate(timeout=20)
    assert ran.returncode == 130
    assert stderr == "\n1 of 2 points kept in out; the same call goes on\n"
    assert "By number of requests" in stdout
    assert has_ended(ran.pid)


def has_ended(group: int) -> bool:
    """Whether every process of a group ends within seconds."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False
