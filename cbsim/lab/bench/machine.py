"""Which machine the figures are from."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

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
        if self.load <= BUSY_LOAD:
            return []
        return [
            f"load of {self.load:.1f} a core when this began: other work makes figures worse and unsteady"
        ]


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name as the kernel tells it, else what Python knows."""
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, name = line.partition(":")
            if key.strip() == "model name":
                return name.strip()
    return platform.processor() or platform.machine()
