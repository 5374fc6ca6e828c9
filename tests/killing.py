"""Kills: commands that are killed at any instant leave nothing half written, and go on to the same bytes.

`python -m tests.killing` (`make kill-test`) kills 200 commands; `--kills` and `--kinds` do fewer. Runs,
sweeps on a pool and on a dask cluster, capacities, tunes, fits of a calibration and reports are killed, by
SIGKILL, at a random instant of the time that they take, or soon after they begin to write. Each is begun anew
in the same folder until it has survived, and then compared with one that nobody has killed. It ends with 1 if
anything was half written or differs. Commands are forked off a process that has imported all they need, so
that work is what is killed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow.parquet as pq
import yaml

from cbsim.base.errors import CbsimError
from cbsim.base.paths import data_folder
from cbsim.cli import main
from cbsim.results.result import load_run

EXPERIMENT: dict[str, Any] = {
    "name": "killed",
    "workload": {
        "type": "synthetic",
        "num_requests": 300,
        "arrivals": {"type": "poisson", "rate_per_s": 2.0},
        "prompt_tokens": {"type": "lognormal", "median": 100, "sigma": 0.5, "max": 400},
        "output_tokens": {"type": "uniform", "min": 1, "max": 30},
    },
    "scheduler": {"type": "continuous", "max_num_seqs": 8},
    "cost_model": {"type": "constant", "step_s": 0.05},
    "kv_cache": {"num_blocks": 500},
    "slo": {"ttft_s": 1.0},
}
SWEEP = ("--set", "sweep={scheduler.max_num_seqs: [2, 4, 8, 16]}", "--no-plots")
TUNE = ("--set", "tune={scheduler.max_num_seqs: [2, 64], trials: 8}")
WATCHED = ("--set", "observers=[csv, log]")
FORKS = multiprocessing.get_context("forkserver")
COMMANDS = ("run", "capacity", "tune", "calibrate")
FORKS.set_forkserver_preload(
    [
        *(f"cbsim.cli.commands.{name}_command" for name in COMMANDS),
        *("cbsim.show.report_file", "pyarrow.parquet", "pandas", "optuna", "distributed"),
    ]
)


@dataclass(frozen=True)
class Kind:
    """A command; `out` is the file or folder that it writes, in the folder that it runs in."""

    line: Sequence[str]
    out: str = "out"


KINDS = {
    "run": Kind(("run", "e.yaml", "--out", "out", *WATCHED)),
    "sweep": Kind(("sweep", "e.yaml", "--out", "out", "--workers", "2", *SWEEP)),
    "dask": Kind(("sweep", "e.yaml", "--out", "out", *SWEEP, "--cluster")),
    "capacity": Kind(("capacity", "e.yaml", "--out", "out", "--replicates", "2")),
    "tune": Kind(("tune", "e.yaml", "--out", "out", *TUNE)),
    "calibrate": Kind(("calibrate", "fit", "points/points.csv", "--out", "out", "--no-picture")),
    "report": Kind(("report", "run", "--out", "report.html"), "report.html"),
}


def contents(path: Path) -> dict[str, Any]:
    """What two runs of one command have in common: all files, but for what a simulation took."""
    found: dict[str, Any] = {}
    for file in [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file()):
        name, told = str(file.relative_to(path)), file.read_bytes()
        found[name] = told
        if file.name == "summary.json":
            found[name] = json.loads(told) | {"simulation": None}
        elif file.suffix == ".json" and file.parent.name == "points":
            figures = json.loads(told)["figures"].items()
            found[name] = {key: value for key, value in figures if not key.startswith("simulation.")}
    return found


def half_written(path: Path) -> Iterator[str]:
    """What is no whole file, but for hidden ones, which nobody reads."""
    for file in sorted(path.rglob("*")) if path.is_dir() else [path] if path.exists() else []:
        if file.is_dir() or any(part.startswith(".") for part in file.relative_to(path.parent).parts):
            continue
        try:
            if file.name == "manifest.json":
                result = load_run(file.parent)
                assert len(result.requests)
                assert len(result.steps)
                assert len(result.events)
            elif file.suffix == ".json":
                json.loads(file.read_text(encoding="utf-8"))
            elif file.suffix == ".parquet":
                pq.read_table(file)
            elif not file.read_bytes().endswith((b"\n", b"IEND\xaeB`\x82", b"</svg>")):
                yield f"{file}: ends early"
        except (CbsimError, ValueError, OSError) as error:
            yield f"{file}: {error}"


@contextmanager
def dask_address(is_wanted: bool) -> Iterator[str]:
    """Where a dask scheduler with one worker answers."""
    if not is_wanted:
        yield ""
        return
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
        yield cluster.scheduler_address


def prepare(folder: Path) -> None:
    """What commands read."""
    folder.mkdir()
    (folder / "e.yaml").write_text(yaml.safe_dump(EXPERIMENT), encoding="utf-8")
    (folder / "points").symlink_to(data_folder("calibration") / "profiles" / "h200" / "llama-3-8b")
    (folder / "run").symlink_to(folder.parent / "run" / "out")


def command(folder: Path, line: Sequence[str]) -> None:
    """A command, in a process of its own; what it says goes into the file `said` there."""
    os.chdir(folder)
    said = os.open("said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    main.main([*line])


def begin(folder: Path, line: Sequence[str]) -> ForkServerProcess:
    """Begin a command in a folder."""
    process = FORKS.Process(target=command, args=(folder, line))
    process.start()
    return process


def finish(folder: Path, line: Sequence[str]) -> float:
    """Run a command to its end; returns the seconds that it took. Raises `RuntimeError` if it fails."""
    began = time.perf_counter()
    process = begin(folder, line)
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{folder}: ended with {process.exitcode}: {(folder / 'said').read_text()}")
    return time.perf_counter() - began


def wait_for_files(process: ForkServerProcess, folder: Path) -> None:
    """Wait until a command begins to write, or has ended."""
    there = {*folder.iterdir(), folder / "said"}
    while process.is_alive() and {*folder.iterdir()} <= there:
        time.sleep(0.001)


def kill_all(name: str, num_kills: int, work: Path, address: str, draw: random.Random) -> list[str]:
    """Kill one kind of command so often; returns what is wrong."""
    kind = KINDS[name]
    line = [*kind.line, *([address] if name == "dask" else [])]
    prepare(work / f"{name}-whole")
    took_s = finish(work / f"{name}-whole", line)
    expected = contents(work / f"{name}-whole" / kind.out)
    problems: list[str] = []
    num_killed = num_left = num_ended = num_folders = 0
    while num_killed < num_kills:
        folder = work / f"{name}-{num_folders}"
        prepare(folder)
        num_folders += 1
        for _ in range(min(draw.randint(1, 6), num_kills - num_killed)):
            process = begin(folder, line)
            if draw.random() < 0.5:
                process.join(draw.uniform(0.0, 1.0) * took_s)
            else:
                wait_for_files(process, folder)
                process.join(draw.uniform(0.0, 0.1))
            process.kill()
            process.join()
            num_killed += process.exitcode == -signal.SIGKILL
            num_ended += process.exitcode == 0
            if process.exitcode not in (0, -signal.SIGKILL):
                problems.append(f"{folder}: ended with {process.exitcode}: {(folder / 'said').read_text()}")
            time.sleep(0.1)  # Workers end when they see that their parent has.
            problems += half_written(folder / kind.out)
            num_left += (folder / kind.out).exists()
        try:
            took_s = min(took_s, finish(folder, line))
        except RuntimeError as error:
            problems.append(str(error))
        found = contents(folder / kind.out)
        problems += [f"{folder}: {file} differs" for file in expected if found.get(file) != expected[file]]
        problems += [f"{folder}: {file} was left" for file in found.keys() - expected.keys()]
    print(
        f"{name}: {num_killed} kills in {num_folders} folders; {num_ended} ended before, {num_left} left "
        f"something to go on from; {len(problems)} problems ({took_s:.1f} s unkilled)",
        flush=True,
    )
    return problems


def kill_kinds() -> None:
    """Kill, print a line for each kind and for each problem."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200, help="in all, shared evenly among the kinds")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=[*KINDS])
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    draw = random.Random(given.seed)
    problems = []
    with TemporaryDirectory() as place, dask_address("dask" in given.kinds) as address:
        work = Path(place)
        prepare(work / "run")
        finish(work / "run", ["run", "e.yaml", "--out", "out"])
        for number, name in enumerate(given.kinds):
            share = (given.kills + number) // len(given.kinds)
            problems += kill_all(name, share, work, address, draw)
    sys.exit("\n".join(problems) or 0)


if __name__ == "__main__":
    kill_kinds()
