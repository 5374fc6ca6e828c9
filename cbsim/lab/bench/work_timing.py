"""Measure works, each in a fresh process, and say on which machine."""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import simpy
import yaml

from cbsim.base.binding import can_compile
from cbsim.base.processor import cpu_name
from cbsim.base.records import column_pieces
from cbsim.base.units import KIB
from cbsim.lab.bench.works import Work
from cbsim.results.metrics import summarize
from cbsim.results.run_log import RunLog
from cbsim.studies.experiment import Experiment
from cbsim.studies.run import deployment_of, make_workload, simulate
from cbsim.studies.worker_pool import WorkerLost, spawned

BUSY_LOAD = 0.5


@dataclass(frozen=True, slots=True)
class Machine:
    """What a reader must know to compare figures with others."""

    cpu: str
    num_cores: int
    python: str
    numpy: str
    simpy: str
    load: float
    """Runnable processes a core over the last minute, when the benchmark began."""

    @classmethod
    def here(cls) -> Machine:
        """This one."""
        num_cores = os.cpu_count() or 1
        return cls(
            cpu=cpu_name(),
            num_cores=num_cores,
            python=f"{platform.python_implementation()} {platform.python_version()}",
            numpy=version("numpy"),
            simpy=version("simpy"),
            load=os.getloadavg()[0] / num_cores if hasattr(os, "getloadavg") else 0.0,
        )

    def describe(self) -> str:
        """One line."""
        versions = f"{self.python}, numpy {self.numpy}, simpy {self.simpy}"
        return f"{self.cpu}, {self.num_cores} cores, one used; {versions}"

    def warnings(self) -> list[str]:
        """What may have made the figures worse than they are."""
        busy = f"load of {self.load:.1f} a core when this began: other work makes figures worse and unsteady"
        return [busy] if self.load > BUSY_LOAD else []


Answer = TypeVar("Answer")

NUM_COMPILED = 1_000
"""Requests of a work from which its warm-up compiles the core."""
NUM_WARM_UP = 20
"""Requests of the run that loads modules and fills caches before anything is timed."""
NUM_RUNS = 3
"""How often a work is timed; the fastest counts."""
MAX_REPEATED_S = 10.0
"""Works that take longer are timed once."""
MAX_BARE_EVENTS = 1_000_000
"""The most events for which the bare SimPy loop is timed; the time of more is scaled."""
MAXRSS_BYTES = 1 if sys.platform == "darwin" else KIB
"""The unit of `ru_maxrss`."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a work took: CPU seconds of one core (`time.process_time`)."""

    num_requests: int
    num_steps: int
    cpu_s: float
    peak_bytes: int
    warm_bytes: int = 0
    """The most memory held before the timed run: interpreter, modules, and a small run that warms up."""
    num_decodes: int = 0
    """Tokens decoded, in all steps."""
    mean_running: float = 0.0
    """Requests that held a slot, mean over all steps."""
    metrics_cpu_s: float | None = None
    """Of the metrics, not part of `cpu_s`."""
    bare_simpy_s: float | None = None
    """A bare SimPy loop of as many events as there were steps, in the same process."""

    @property
    def s_per_step(self) -> float:
        """CPU seconds a step."""
        return self.cpu_s / self.num_steps

    @property
    def s_per_request(self) -> float:
        """CPU seconds a request."""
        return self.cpu_s / self.num_requests


def measure(work: Work) -> Measured:
    """Measure a work in a process of its own."""
    return in_fresh_process(MEASURES[work.how], dict(work.settings))


def in_fresh_process(function: Callable[..., Answer], *arguments: Any) -> Answer:
    """What a function of a module gives in a process that has done nothing before.

    Raises what it raises, and `WorkerLost` if the process ends without an answer, as for want of memory. The
    process doesn't outlive this call; it never hears of Ctrl-C, which a terminal sends to all at once.
    """
    try:
        with spawned(1) as executor:
            return executor.submit(function, *arguments).result()
    except BrokenExecutor:
        raise WorkerLost("its process ended without an answer (out of memory?)") from None


def measure_simulation(settings: Mapping[str, Any]) -> Measured:
    """The simulation alone (arrivals read, steps run, arrays made), and the metrics beside it."""
    experiment = Experiment.from_mapping(settings)
    overrides: dict[str, Any] = {"workload.limit": NUM_WARM_UP}
    num_requests = make_workload(experiment).num_requests() or 0
    if num_requests >= NUM_COMPILED and experiment.speed == "auto" and can_compile():
        overrides["engine"] = "compiled"  # So long a work would compile while it is timed.
    return _measure(experiment, Experiment.from_mapping(settings, overrides=overrides))


def measure_scaled(settings: Mapping[str, Any], small: Mapping[str, Any]) -> Measured:
    """The same without what a trace's file costs however few of its requests are used.

    `small` is the experiment that warms up.
    """
    return _measure(Experiment.from_mapping(settings), Experiment.from_mapping(small), is_read=True)


def measure_command(settings: Mapping[str, Any]) -> Measured:
    """`cbsim run` from the start of its process to the written run folder, twice; the faster counts."""
    with tempfile.TemporaryDirectory(prefix="cbsim-bench-") as folder:
        config, out = Path(folder) / "bench.yaml", Path(folder) / "run"
        config.write_text(yaml.safe_dump(dict(settings)), encoding="utf-8", newline="")
        command = [sys.executable, "-m", "cbsim", "run", str(config), "--out", str(out), "--quiet", "--json"]
        times = []
        for _ in range(2):
            before_s = _children_cpu_s()
            ran = subprocess.run(command, check=True, capture_output=True, text=True)
            times.append(_children_cpu_s() - before_s)
    summary = json.loads(ran.stdout)
    peak_bytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * MAXRSS_BYTES
    return Measured(summary["num_requests"], summary["num_steps"], min(times), peak_bytes)


MEASURES: dict[str, Callable[[Mapping[str, Any]], Measured]] = {
    "simulate": measure_simulation,
    "command": measure_command,
}
"""By `Work.how`."""


def num_runs(cpu_s: float) -> int:
    """How often a work is timed whose run takes `cpu_s` seconds."""
    return NUM_RUNS if cpu_s < MAX_REPEATED_S else 1


def bare_simpy_s(num_events: int) -> float:
    """CPU seconds of a SimPy process that does nothing but wait `num_events` times."""
    num_timed = min(num_events, MAX_BARE_EVENTS)

    def wait(env: simpy.Environment) -> Generator[simpy.Event, None, None]:
        for _ in range(num_timed):
            yield env.timeout(0.01)

    env = simpy.Environment()
    env.process(wait(env))
    began = time.process_time()
    env.run()
    return (time.process_time() - began) * num_events / num_timed


def peak_memory_bytes() -> int:
    """The most memory this process has held.

    From the kernel's high-water mark where it is told, as `ru_maxrss` begins with the parent's.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * KIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_BYTES


def _children_cpu_s() -> float:
    """CPU seconds of the child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _measure(experiment: Experiment, warm_up: Experiment, *, is_read: bool = False) -> Measured:
    """The fastest of three runs, or the only one where that takes long; memory is the first one's."""
    _simulate(warm_up)
    warm_bytes = peak_memory_bytes()
    runs = [_simulate(experiment, is_read=is_read)]
    runs += [_simulate(experiment, is_read=is_read) for _ in range(num_runs(runs[0].cpu_s) - 1)]
    best = min(runs, key=lambda run: run.cpu_s)
    bare_s = min(bare_simpy_s(best.num_steps) for _ in runs)
    return replace(best, peak_bytes=runs[0].peak_bytes, warm_bytes=warm_bytes, bare_simpy_s=bare_s)


def _simulate(experiment: Experiment, *, is_read: bool = False) -> Measured:
    workload = make_workload(experiment)
    if is_read:
        next(workload.requests(), None)
    began = time.process_time()
    log, _ = simulate(experiment, workload)
    cpu_s = time.process_time() - began
    summary = summarize(log, deployment_of(experiment), experiment.slo.limits())
    # The peak first: whole columns of steps are what neither the run nor its metrics hold.
    peak_bytes, num_steps = peak_memory_bytes(), summary["num_steps"]
    return Measured(
        num_requests=summary["num_requests"],
        num_steps=num_steps,
        cpu_s=cpu_s,
        peak_bytes=peak_bytes,
        num_decodes=_total(log, "num_decode_tokens"),
        mean_running=_total(log, "num_running") / num_steps,
        metrics_cpu_s=summary["simulation"]["metrics_cpu_s"],
    )


def _total(log: RunLog, name: str) -> int:
    """Sum of a column of whole numbers over all steps."""
    return sum(int(column.sum()) for (column,) in column_pieces(log.steps, [name]))
