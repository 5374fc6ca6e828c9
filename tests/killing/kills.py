"""Kills: commands that are killed at any instant leave nothing half written, and go on to the same bytes.

`python -m tests.killing` (`make kill-test`) kills 200 commands; `--kills`, `--kinds` and `--signal` choose
others. Runs, sweeps on a pool and on a dask cluster, capacities, tunes, timings and fits of a calibration and
reports are each run once undisturbed, and then killed at instants spread evenly over the time that took;
every fourth as soon after that as a file is being written. Commands are forked off a process that has
imported all they need, so that work is what is killed. After each kill what lies there is whole, and workers
end within 2 s; after one or more the same command goes on to its end, does nothing again that was kept, and
leaves what the undisturbed one has left. A table tells of it, and the exit code, 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import accumulate
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
SWEEP = ("--set", "sweep={scheduler.max_num_seqs: [2, 3, 4, 6, 8, 12]}", "--no-plots")
TUNE = ("--set", "tune={scheduler.max_num_seqs: [2, 64], trials: 8}")
WATCHED = ("--set", "observers=[csv, log]")
PROFILE = data_folder("calibration") / "profiles" / "h200" / "llama-3-8b"
EVERY_NTH_POINT = 4
"""Points of a profile that are fitted: few, as the time goes into effects that few don't show."""
ENDS = (b"\n", b"IEND\xaeB`\x82", b"</svg>")
INPUTS = ("e.yaml", "points", "run", "said")
"""What lies in a command's folder beside what it writes, and what it said."""
FORKS = multiprocessing.get_context("forkserver")
COMMANDS = ("run", "capacity", "tune", "calibrate")
LIBRARIES = ("cbsim.show.report_file", "pyarrow.parquet", "pandas", "optuna", "distributed")
TIMING = "cbsim.lab.calibrate.measurement"
FORKS.set_forkserver_preload(
    [*(f"cbsim.cli.commands.{name}_command" for name in COMMANDS), *LIBRARIES, TIMING]
)

PARTS_OF_LIFE = 5
PHASES = ("nothing", "in a file", "between", "all there")
"""What lay there after a kill: nothing, a file under way, some of the files, or all of them."""
WITHIN_S = 2.0
"""Workers end so soon after their parent, on a machine that does nothing else."""


@dataclass(frozen=True)
class Kind:
    """A command; `out` is the file or folder that it writes, in the folder that it runs in."""

    line: Sequence[str]
    out: str = "out"
    is_timed: bool = False
    """Whether it writes down what kernels took, which no two do alike."""
    share: float = 1.0
    """Of the kills, beside the others'."""


KINDS = {
    "run": Kind(("run", "e.yaml", "--out", "out", *WATCHED)),
    "sweep": Kind(("sweep", "e.yaml", "--out", "out", "--workers", "2", *SWEEP)),
    "dask": Kind(("sweep", "e.yaml", "--out", "out", *SWEEP, "--cluster")),
    "capacity": Kind(("capacity", "e.yaml", "--out", "out", "--replicates", "2")),
    "tune": Kind(("tune", "e.yaml", "--out", "out", *TUNE)),
    "calibrate": Kind(("time kernels",), is_timed=True, share=0.5),
    "fit": Kind(("calibrate", "fit", "points/points.csv", "--out", "out", "--no-picture"), share=0.5),
    "report": Kind(("report", "run", "--out", "report.html"), "report.html"),
}


@dataclass
class Tally:
    """What became of the kills of one kind."""

    life_s: float
    parts: Counter[int] = field(default_factory=Counter)
    phases: Counter[str] = field(default_factory=Counter)
    num_folders: int = 0
    slowest_s: float = 0.0
    """The longest that a worker, or a command that was asked to end, took to."""
    problems: list[str] = field(default_factory=list)

    def row(self, name: str) -> str:
        """A row of the table."""
        counts = (self.parts[part] for part in range(PARTS_OF_LIFE))
        phases = (f"{self.phases[phase]:>{len(phase) + 1}}" for phase in PHASES)
        kills = (
            f"{name:<10}{self.life_s:>7.1f}{self.parts.total():>7}   {' '.join(f'{n:>3}' for n in counts)}  "
        )
        return f"{kills}{' '.join(phases)}{self.num_folders:>9}{self.slowest_s:>9.1f}{len(self.problems):>10}"


HEAD = (
    f"{'command':<10}{'life, s':>7}{'kills':>7}   {'by fifth of its life':<{4 * PARTS_OF_LIFE}} "
    f"{'  '.join(PHASES)}  resumed  ended, s  problems"
)


def written(folder: Path) -> Iterator[Path]:
    """The files that commands have written in a folder, hidden ones too."""
    for top in sorted(folder.iterdir()):
        if top.name not in INPUTS:
            # Workers of dask's outlive the command: folders may go while this looks.
            found = (Path(place, name) for place, _, names in os.walk(top) for name in names)
            yield from [top] if top.is_file() else sorted(found)


def contents(folder: Path, kind: Kind) -> dict[str, Any]:
    """What two runs of one command have in common: all files, but for what a simulation or a kernel took."""
    found: dict[str, Any] = {}
    for file in written(folder):
        name, told = str(file.relative_to(folder)), file.read_bytes()
        found[name] = told
        if file.name == "summary.json":
            found[name] = json.loads(told) | {"simulation": None}
        elif file.suffix == ".json" and file.parent.name == "points":
            figures = json.loads(told)["figures"].items()
            found[name] = {key: value for key, value in figures if not key.startswith("simulation.")}
        elif kind.is_timed and file.suffix == ".csv":
            rows = csv.DictReader(told.decode().splitlines())
            found[name] = [{key: cell for key, cell in row.items() if key[:2] != "t_"} for row in rows]
        elif kind.is_timed:
            found[name] = [*json.loads(told)]
    return found


def kept(folder: Path) -> dict[Path, bytes]:
    """What a command that goes on must leave as it is: points that are whole, by their files."""
    points = (file for file in written(folder) if is_kept(file.relative_to(folder)))
    found = {file: file.read_bytes() for file in points}
    return {
        file: told[: told.rfind(b"\n") + 1] if file.suffix == ".csv" else told for file, told in found.items()
    }


def is_kept(file: Path) -> bool:
    """Whether a file is a point's, or the list of them."""
    return file.parts[:2] in (("out", "points"), ("out", "points.csv")) and not is_under_way(file)


def is_under_way(file: Path) -> bool:
    """Whether a file or one of its folders is hidden: nobody reads it."""
    return any(part.startswith(".") for part in file.parts)


def half_written(folder: Path) -> Iterator[str]:
    """What is no whole file, but for hidden ones; rows of timings are on disk one by one."""
    for file in written(folder):
        if is_under_way(file.relative_to(folder)):
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
            elif file.name != "points.csv" and not file.read_bytes().endswith(ENDS):
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
    (folder / "points").mkdir()
    shutil.copy(PROFILE / "meta.json", folder / "points")
    head, *rows = (PROFILE / "points.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "points" / "points.csv").write_text("".join([head, *rows[::EVERY_NTH_POINT]]), encoding="utf-8")
    (folder / "run").symlink_to(folder.parent / "run" / "out")


def command(folder: Path, line: Sequence[str]) -> None:
    """A command, in a process of its own; what it says goes into the file `said` there."""
    os.chdir(folder)
    said = os.open("said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    if line == KINDS["calibrate"].line:
        time_kernels(Path("out"))
    else:
        main.main([*line])


def time_kernels(out: Path) -> None:
    """What `cbsim calibrate --device cpu --model tiny --plan quick` does, with each kernel timed but once,
    and the fit of that without its report."""
    from cbsim.lab.calibrate.fit import fit_unreported
    from cbsim.lab.calibrate.measurement import measure
    from cbsim.lab.calibrate.named_spec import load_model
    from cbsim.lab.kernels.timing import CpuTimer

    timer = CpuTimer(num_runs=1, num_warmups=1, target_s=0.0)
    timed = measure(load_model("tiny"), out, device="cpu", plan="quick", timer=timer, command="killed")
    fit_unreported(timed.points, timed.meta, out / "points.csv").save(out / "cost.json")


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


def wait_for_a_file(process: ForkServerProcess, folder: Path) -> None:
    """Wait until a command is writing a file, or has ended."""
    while process.is_alive() and not any(
        is_under_way(path.relative_to(folder)) for path in folder.rglob("*")
    ):
        time.sleep(0.0005)


def processes() -> Iterator[tuple[int, int]]:
    """The processes of this machine that have not ended, and their parents; none where no `/proc` tells."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                yield int(path.parent.name), int(parent)


def wait_for_workers(workers: set[int]) -> Iterator[str]:
    """Wait until the children of a killed process have ended; says which have not in time."""
    began = time.perf_counter()
    while left := workers & {process for process, _ in processes()}:
        # What else runs on a machine takes its time from them.
        within_s = WITHIN_S * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
        if time.perf_counter() - began > within_s:
            yield f"workers {sorted(left)} still run {within_s:.1f} s after their parent has ended"
            return
        time.sleep(0.02)


def kill_all(name: str, num_kills: int, work: Path, address: str, draw: random.Random, sent: int) -> Tally:
    """Kill one kind of command so often."""
    kind = KINDS[name]
    line = [*kind.line, *([address] if name == "dask" else [])] if name != "calibrate" else kind.line
    whole = work / f"{name}-whole"
    prepare(whole)
    tally = Tally(finish(whole, line))
    expected = contents(whole, kind)
    instants = [(number + draw.random()) / num_kills for number in range(num_kills)]
    draw.shuffle(instants)
    while instants:
        folder = work / f"{name}-{tally.num_folders}"
        prepare(folder)
        if name == "run" and draw.random() < 0.5:  # one that replaces another
            shutil.copytree(whole / "out", folder / "out")
        tally.num_folders += 1
        points: dict[Path, bytes] = {}
        is_ended = False
        while instants and not is_ended and (not points or draw.random() < 0.6):
            is_ended = not kill_one(name, line, folder, instants, tally, draw, sent, len(expected))
            points |= kept(folder)
            if not points and draw.random() < 0.4:
                break
        try:
            if not is_ended:
                finish(folder, line)
        except RuntimeError as error:
            tally.problems.append(str(error))
        found = contents(folder, kind)
        tally.problems += [
            f"{folder}: {file} differs" for file in expected if found.get(file) != expected[file]
        ]
        tally.problems += [f"{folder}: {file} was left" for file in found.keys() - expected.keys()]
        for file, told in points.items():
            if not file.exists() or not file.read_bytes().startswith(told):
                tally.problems.append(f"{file}: was made anew, or lost")
        if not tally.problems:
            shutil.rmtree(folder)
    return tally


def kill_one(
    name: str,
    line: Sequence[str],
    folder: Path,
    instants: list[float],
    tally: Tally,
    draw: random.Random,
    sent: int,
    num_files: int,
) -> bool:
    """Begin a command and kill it at the next instant, a share of its life; false if it had ended before.

    Then the instant stays to come, a little earlier.
    """
    instant = instants.pop()
    out = folder / KINDS[name].out
    was_there, is_first = out.exists(), not any(written(folder))
    begun = time.perf_counter()
    process = begin(folder, line)
    process.join(instant * tally.life_s)
    if draw.random() < 0.25:
        wait_for_a_file(process, folder)
    workers = {each for each, parent in processes() if parent == process.pid}
    began = time.perf_counter()
    if process.is_alive():
        assert process.pid is not None
        with suppress(ProcessLookupError):  # It has just ended, and a thread of dask's has asked for it.
            os.kill(process.pid, sent)
    process.join()
    if process.exitcode == 0:
        instants.insert(0, 0.95 * instant)
        if is_first:
            tally.life_s = time.perf_counter() - begun
        return False
    problems = [*wait_for_workers(workers)]
    tally.slowest_s = max(tally.slowest_s, time.perf_counter() - began)
    if process.exitcode not in (-sent, 128 + sent):
        problems.append(f"ended with {process.exitcode}: {(folder / 'said').read_text()}")
    # A point that two processes in a row have died of would be left out, as if it had brought them down.
    if out.is_dir():
        (out / ".under-way").unlink(missing_ok=True)
    if was_there and not out.exists():
        problems.append(f"{out}: was there, and is lost")
    files = [*written(folder)]
    under_way = [file for file in files if is_under_way(file.relative_to(folder))]
    if sent == signal.SIGINT and under_way:
        problems.append(f"{under_way[0]}: stays behind")
    tally.parts[int(PARTS_OF_LIFE * instant)] += 1
    phase = 0 if not files else 1 if under_way else 2 if len(files) < num_files else 3
    tally.phases[PHASES[phase]] += 1
    tally.problems += [f"{folder}: {problem}" for problem in (*problems, *half_written(folder))]
    return True


def kill_kinds() -> None:
    """Kill, and print a row for each kind, then all of them, and a line for each problem."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200, help="in all, shared among the kinds")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=[*KINDS])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--signal", default="KILL", choices=("KILL", "TERM", "INT", "HUP"))
    given = parser.parse_args()
    if "calibrate" in given.kinds and find_spec("torch") is None:
        given.kinds.remove("calibrate")
        print("calibrate: left out, as torch is not installed", flush=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    draw = random.Random(given.seed)
    tallies: dict[str, Tally] = {}
    began = time.perf_counter()
    with TemporaryDirectory() as place, dask_address("dask" in given.kinds) as address:
        work = Path(place)
        prepare(work / "run")
        finish(work / "run", ["run", "e.yaml", "--out", "out"])
        print(HEAD, flush=True)
        shares = [*accumulate(KINDS[name].share for name in given.kinds)]
        ends = [0, *(round(given.kills * share / shares[-1]) for share in shares)]
        for name, start, end in zip(given.kinds, ends, ends[1:], strict=False):
            sent = signal.Signals[f"SIG{given.signal}"]
            tallies[name] = kill_all(name, end - start, work, address, draw, sent)
            print(tallies[name].row(name), flush=True)
    problems = [problem for tally in tallies.values() for problem in tally.problems]
    num_kills = sum(tally.parts.total() for tally in tallies.values())
    print(f"{num_kills} kills in {time.perf_counter() - began:.0f} s, {len(problems)} problems")
    sys.exit("\n".join(problems) or 0)
