"""CPU seconds and memory of processes, and the bare SimPy loop that figures are held against."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Generator
from pathlib import Path

import simpy

from cbsim.base.units import KIB

MAX_BARE_EVENTS = 1_000_000
"""Beyond, the bare loop is timed for so many events and its time scaled."""
MAXRSS_BYTES = 1 if sys.platform == "darwin" else KIB
"""The unit of `ru_maxrss`."""


def bare_simpy_s(num_events: int) -> float:
    """CPU seconds of a SimPy process that does nothing but wait, so many times."""
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


def children_cpu_s() -> float:
    """CPU seconds of the child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def children_peak_bytes() -> int:
    """The most memory that any of them has held."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * MAXRSS_BYTES
