"""Timing: how long calls take, by CUDA events round a graph, or by the clock on a CPU."""

from __future__ import annotations

import gc
import math
import os
import platform
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from cbsim.base.errors import CalibrationError
from cbsim.base.registry import did_you_mean
from cbsim.base.units import KIB, MIB, MS_PER_S
from cbsim.lab.bench.work_timing import cpu_name
from cbsim.results.result import package_version

MEMINFO = Path("/proc/meminfo")
KINDS = ("cuda", "cpu")
PACKAGES = ("cbsim", "torch", "triton", "numpy")


@dataclass(frozen=True, slots=True)
class Device:
    """A device and what it runs."""

    torch_device: torch.device
    name: str
    free_bytes: int
    """Memory free before anything is loaded."""
    l2_bytes: int
    """Size of the last cache before memory; 0 where it isn't known."""
    software: dict[str, str]
    """Versions."""

    @property
    def is_cuda(self) -> bool:
        """Whether it is a GPU."""
        return self.torch_device.type == "cuda"


def open_device(kind: str) -> Device:
    """The first GPU, or this machine's processor. Raises `CalibrationError` if there is no such device."""
    if kind not in KINDS:
        raise CalibrationError(f"--device: unknown '{kind}'{did_you_mean(kind, KINDS)}")
    software = {package: package_version(package) for package in PACKAGES}
    software["python"] = platform.python_version()
    if kind == "cpu":
        software["system"] = platform.platform()
        software["threads"] = str(torch.get_num_threads())
        cpu = torch.device("cpu")
        return Device(cpu, cpu_name(), free_bytes(cpu), 0, software)
    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = f"torch {torch.__version__} is built without it" if built is None else "torch finds no GPU"
        raise CalibrationError(f"--device cuda: no CUDA here: {why}; allowed: --device cpu")
    device = torch.device("cuda", torch.cuda.current_device())
    properties = torch.cuda.get_device_properties(device)
    driver_line = _system_file(Path("/proc/driver/nvidia/version")).partition("\n")[0]
    driver = re.search(r"\s(\d\S*\.\S*)", driver_line)
    software["cuda"] = str(torch.version.cuda)
    software["driver"] = driver[1] if driver else "unknown"
    return Device(device, properties.name, free_bytes(device), properties.L2_cache_size, software)


def free_bytes(device: torch.device) -> int:
    """Bytes free on a GPU, or in this machine's memory; what torch holds without need is given back first.

    Of a machine's memory counts what Linux would take back from its file cache for the asking.
    """
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(device)[0])
    available = re.search(r"^MemAvailable:\s*(\d+)", _system_file(MEMINFO), re.MULTILINE)
    if available:
        return int(available[1]) * KIB
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _system_file(path: Path) -> str:
    """What the system says in a file; nothing where it has no such file."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


Call = Callable[[], object]
MakeCalls = Callable[[int], list[Call]]
"""Makes that number of calls of the same work, each on data of its own so that caches stay cold."""

NUM_WARMUPS = 3
NUM_RUNS = 20
MAX_CALLS = 16
UNSTABLE_SPREAD = 0.1
"""A timing is unstable if its 90th percentile lies more than this share above its median."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one call: median, fastest and 90th percentile of the runs."""

    median_s: float
    min_s: float
    p90_s: float
    num_runs: int
    graph: bool
    """Whether a CUDA graph was replayed."""
    is_cold: bool = False
    """Whether the L2 cache was flushed before each run."""

    @property
    def is_unstable(self) -> bool:
        """Whether the runs differ by more than a calm device's would."""
        return self.p90_s > (1 + UNSTABLE_SPREAD) * self.median_s

    @classmethod
    def of(cls, runs_s: Sequence[float], *, graph: bool = False, is_cold: bool = False) -> Timing:
        """From the seconds of each run."""
        median, p90 = np.median(runs_s), np.quantile(runs_s, 0.9)
        return cls(float(median), float(min(runs_s)), float(p90), len(runs_s), graph, is_cold)

    @classmethod
    def summed(cls, parts: Sequence[tuple[float, Timing]]) -> Timing:
        """Several timings by shares of each; percentiles are summed as they are."""
        first = parts[0][1]

        def total_s(name: str) -> float:
            return float(sum(share * getattr(timing, name) for share, timing in parts))

        seconds = total_s("median_s"), total_s("min_s"), total_s("p90_s")
        is_graph = all(timing.graph for _, timing in parts)
        return cls(*seconds, first.num_runs, is_graph, first.is_cold)


class Timer(ABC):
    """Times work: warms up, then runs calls that fill `target_s` together, often enough for a median."""

    def __init__(
        self, num_runs: int = NUM_RUNS, num_warmups: int = NUM_WARMUPS, target_s: float = 2e-4
    ) -> None:
        self.num_runs, self.num_warmups, self.target_s = num_runs, num_warmups, target_s

    def time(self, make_calls: MakeCalls) -> Timing:
        """Seconds of one call. Raises MemoryError if the device has too little memory for it."""
        try:
            with torch.inference_mode():
                return self._time(make_calls)
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise MemoryError(str(error)) from error

    @abstractmethod
    def _time(self, make_calls: MakeCalls) -> Timing:
        """What `time` returns."""

    @abstractmethod
    def _run_s(self, run: Call) -> float:
        """Seconds of one run."""

    def _warm_calls(self, make_calls: MakeCalls) -> list[Call]:
        """The calls to time, as many as the fastest warm-up of one says."""
        (first,) = make_calls(1)
        warm_s = [self._run_s(first) for _ in range(max(1, self.num_warmups))]
        return make_calls(num_calls(min(warm_s), self.target_s))

    def _runs_s(self, run: Call, count: int) -> list[float]:
        return [self._run_s(run) / count for _ in range(self.num_runs)]


class CpuTimer(Timer):
    """`perf_counter` round several calls in a row."""

    def _time(self, make_calls: MakeCalls) -> Timing:
        calls = self._warm_calls(make_calls)
        return Timing.of(self._runs_s(partial(_run_all, calls), len(calls)))

    def _run_s(self, run: Call) -> float:
        start = perf_counter()
        run()
        return perf_counter() - start


class CudaTimer(Timer):
    """CUDA events round one replay of a graph of several calls, with the L2 cache flushed before each.

    The flush keeps the GPU busy while the host launches the graph, so launch time is not in the measurement.
    Work that can't be captured is timed as it is, and says so.
    """

    def __init__(self, device: Device) -> None:
        super().__init__(target_s=1e-3)
        self._device = device.torch_device
        # Enough that nothing of the last run is left in the L2 cache.
        flush_bytes = max(4 * device.l2_bytes, 256 * MIB)
        self._flushed = torch.empty(flush_bytes, dtype=torch.uint8, device=self._device)

    def _time(self, make_calls: MakeCalls) -> Timing:
        side = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            calls = self._warm_calls(make_calls)
            _run_all(calls)
        torch.cuda.current_stream(self._device).wait_stream(side)
        torch.cuda.synchronize(self._device)
        graph = self._capture(calls)
        run: Call = partial(_run_all, calls) if graph is None else graph.replay
        for _ in range(self.num_warmups):
            run()
        runs_s = self._runs_s(run, len(calls))
        if graph is not None:
            graph.reset()
        return Timing.of(runs_s, graph=graph is not None, is_cold=True)

    def _capture(self, calls: Sequence[Call]) -> torch.cuda.CUDAGraph | None:
        graph = torch.cuda.CUDAGraph()
        try:
            # Each graph has memory of its own: a pool whose last graph is gone can't be captured into again.
            with torch.cuda.graph(graph):
                _run_all(calls)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            torch.cuda.synchronize(self._device)
            return None
        return graph

    def _run_s(self, run: Call) -> float:
        start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._flushed.zero_()
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / MS_PER_S


def make_timer(device: Device) -> Timer:
    """The timer that suits a device."""
    return CudaTimer(device) if device.is_cuda else CpuTimer()


def num_calls(call_s: float, target_s: float) -> int:
    """Calls that fill `target_s` together, 1 to `MAX_CALLS`."""
    return max(1, min(MAX_CALLS, math.ceil(target_s / max(call_s, 1e-9))))


def _run_all(calls: Sequence[Call]) -> None:
    for call in calls:
        call()
