"""Parts of a sweep that spawned workers can import: a small workload, and one that breaks."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Client

from cbsim.workload import Workload, WorkloadConfig
from cbsim.workload.request import Request


class EvenConfig(WorkloadConfig):
    interval_s: float = 1.0
    num_output_tokens: int = 4
    breaks: str = ""


class Even(Workload):
    """Twenty requests at even distances; `breaks` says how a run comes to grief: `error` or `killed`."""

    Config = EvenConfig

    def requests(self) -> Iterator[Request]:
        if self.config.breaks == "error":
            raise ZeroDivisionError("a bug in a plug-in")
        if self.config.breaks == "killed":
            os._exit(9)
        for number in range(20):
            yield Request(f"r{number}", number * self.config.interval_s, 32, self.config.num_output_tokens)

    def num_requests(self) -> int:
        return 20


def process_id(wait_s: float) -> int:
    """The process that a task runs in, after a while."""
    time.sleep(wait_s)
    return os.getpid()


def garbage_threshold(_: int) -> int:
    """How many objects are made in that process between two looks for garbage."""
    return gc.get_threshold()[0]


IMPORTED_BEFORE = frozenset(sys.modules)
"""Modules that were there before this one."""


def where_it_runs(name: str) -> tuple[str | None, bool]:
    """The file of a package there, and whether all of sweeps was imported before the task came."""
    return sys.modules[name].__file__, "cbsim.studies.sweep" in IMPORTED_BEFORE


def hold_on(address: str) -> None:
    """A task that goes on for a minute: who listens at the address hears when its process ends."""
    with Client(address, "AF_UNIX"):
        time.sleep(60)


EVEN = {
    "name": "even",
    "workload": {"type": "tests.sweep_parts:Even"},
    "scheduler": {"type": "continuous", "max_num_seqs": 4},
    "cost_model": {"type": "constant", "step_s": 0.1},
    "kv_cache": {"num_blocks": 100},
}
"""Settings of a run of `Even`."""
