"""Timing: how long calls take, by CUDA events round a graph, or by the clock on a CPU."""

from __future__ import annotations

import gc
import math
import os
import platform
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from cbsim.base.errors import CalibrationError
from cbsim.base.processor import cpu_name
from cbsim.base.registry import did_you_mean
from cbsim.base.units import KIB, MIB, MS_PER_S
from cbsim.lab.kernels.graph_capture import captured, one_line
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
"""Calls in a row at most."""
MAX_GRAPH_CALLS = 64
"""And in a graph, so that what starting one takes is shared by many."""
UNSTABLE_SPREAD = 0.1
"""A timing is unstable if its 90th percentile lies more than this share above its median."""
LEAD_S = 1e-4
"""How long the GPU is kept busy before a run, beside what the host needs to launch it."""
MAX_LEAD_S = 0.02
SHORTEST_S = 1e-7
"""Less than any kernel takes: what is left of a run is never nothing."""
NUM_NODES = 65
"""Kernels of the longer of two graphs whose times tell what starting a graph takes."""
CYCLES_PER_S = 2.5e9
"""No GPU's clock is faster: waits are counted in cycles, and last longer while the clock is lower."""


class DeviceLost(RuntimeError):
    """The device answers no more: to every later call it says what it said last."""


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
        self,
        num_runs: int = NUM_RUNS,
        num_warmups: int = NUM_WARMUPS,
        target_s: float = 2e-4,
        max_calls: int = MAX_CALLS,
    ) -> None:
        self.num_runs, self.num_warmups, self.target_s = num_runs, num_warmups, target_s
        self.max_calls = max_calls

    def time(self, make_calls: MakeCalls, *, what: object = None, as_graph: bool = True) -> Timing:
        """Seconds of one call. `as_graph`: as a CUDA graph, where the device has them.

        `what` says what is timed, for timers that know how long that takes without running it. Raises
        MemoryError if the device has too little memory for it, `CaptureFailed` where it can't be captured,
        `DeviceLost` where nothing can be computed any more.
        """
        try:
            with torch.inference_mode():
                return self._time(make_calls, what, as_graph)
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise MemoryError(str(error)) from error
        except torch.AcceleratorError as error:
            raise DeviceLost(one_line(error)) from error

    def check(self) -> None:  # noqa: B027
        """Raise `DeviceLost` if the device can't go on after an error; a CPU always can."""

    @abstractmethod
    def _time(self, make_calls: MakeCalls, what: object, as_graph: bool) -> Timing:
        """What `time` returns."""

    @abstractmethod
    def _run_s(self, run: Call) -> float:
        """Seconds of one run."""

    def _warm_calls(self, make_calls: MakeCalls) -> list[Call]:
        """The calls to time, as many as the fastest warm-up of one says."""
        (first,) = make_calls(1)
        warm_s = [self._run_s(first) for _ in range(max(1, self.num_warmups))]
        return make_calls(num_calls(min(warm_s), self.target_s, self.max_calls))

    def _runs_s(self, run: Call, count: int) -> list[float]:
        return [self._run_s(run) / count for _ in range(self.num_runs)]


class CpuTimer(Timer):
    """`perf_counter` round several calls in a row."""

    def _time(self, make_calls: MakeCalls, what: object, as_graph: bool) -> Timing:
        calls = self._warm_calls(make_calls)
        return Timing.of(self._runs_s(partial(_run_all, calls), len(calls)))

    def _run_s(self, run: Call) -> float:
        start = perf_counter()
        run()
        return perf_counter() - start


class CudaTimer(Timer):
    """CUDA events round one replay of a graph of several calls, with the L2 cache flushed before each.

    The flush, and a wait of the GPU behind it, last longer than the host needs to launch the graph, so that
    launching is not in the measurement; what starting any graph takes is taken off. `as_graph=False` is for
    work that can't be captured: it is launched kernel by kernel, which the wait hides as far as it can.
    """

    def __init__(self, device: Device) -> None:
        super().__init__(target_s=1e-3, max_calls=MAX_GRAPH_CALLS)
        self._device = device.torch_device
        # Enough that nothing of the last run is left in the L2 cache.
        flush_bytes = max(4 * device.l2_bytes, 256 * MIB)
        self._flushed = torch.empty(flush_bytes, dtype=torch.uint8, device=self._device)
        self._lead_s = 0.0
        self._graph_start_s = -1.0

    @property
    def graph_start_s(self) -> float:
        """Seconds that starting a graph takes beside its kernels; measured at first use."""
        if self._graph_start_s < 0:
            add = partial(torch.zeros(1, device=self._device).add_, 1.0)
            add()
            one_s, many_s = (np.median(self._replays_s([add] * count, 1)) for count in (1, NUM_NODES))
            self._graph_start_s = max(0.0, float(one_s - (many_s - one_s) / (NUM_NODES - 1)))
        return self._graph_start_s

    def check(self) -> None:
        """See `Timer.check`."""
        try:
            self._flushed[:1].zero_()
            torch.cuda.synchronize(self._device)
        except RuntimeError as error:
            raise DeviceLost(one_line(error)) from error

    def _time(self, make_calls: MakeCalls, what: object, as_graph: bool) -> Timing:
        start_s = self.graph_start_s if as_graph else 0.0
        side = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            calls = self._warm_calls(make_calls)
            launching = perf_counter()
            _run_all(calls)
            launch_s = perf_counter() - launching
        torch.cuda.current_stream(self._device).wait_stream(side)
        torch.cuda.synchronize(self._device)
        if not as_graph:
            with self._lead(launch_s):
                runs_s = self._runs_s(partial(_run_all, calls), len(calls))
            return Timing.of(runs_s, is_cold=True)
        replays_s = self._replays_s(calls, self.num_warmups)
        net_s = [max(run_s - start_s, SHORTEST_S) / len(calls) for run_s in replays_s]
        return Timing.of(net_s, graph=True, is_cold=True)

    def _replays_s(self, calls: Sequence[Call], num_warmups: int) -> list[float]:
        """Seconds of each replay of a graph of calls that have run before, its start included."""
        torch.cuda.synchronize(self._device)
        # Each graph has memory of its own: a pool whose last graph is gone can't be captured into again.
        graph, _ = captured(partial(_run_all, calls))
        for _ in range(num_warmups):
            graph.replay()
        with self._lead(0.0):
            replays_s = self._runs_s(graph.replay, 1)
        graph.reset()
        return replays_s

    @contextmanager
    def _lead(self, launch_s: float) -> Iterator[None]:
        """Runs within it begin only when the GPU has waited for what the host needs to launch them."""
        self._lead_s = min(LEAD_S + 1.5 * launch_s, MAX_LEAD_S)
        try:
            yield
        finally:
            self._lead_s = 0.0

    def _run_s(self, run: Call) -> float:
        self._flushed.zero_()
        if self._lead_s:
            torch.cuda._sleep(int(self._lead_s * CYCLES_PER_S))  # type: ignore[no-untyped-call]
        start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / MS_PER_S


def make_timer(device: Device) -> Timer:
    """The timer that suits a device."""
    return CudaTimer(device) if device.is_cuda else CpuTimer()


def num_calls(call_s: float, target_s: float, most: int = MAX_CALLS) -> int:
    """Calls that fill `target_s` together, 1 to `most`."""
    return max(1, min(most, math.ceil(target_s / max(call_s, 1e-9))))


def _run_all(calls: Sequence[Call]) -> None:
    for call in calls:
        call()
