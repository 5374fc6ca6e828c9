"""Which machine the figures are from."""

from __future__ import annotations

import os
import platform
import re
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
        busy = f"load of {self.load:.1f} a core when this began: other work makes figures worse and unsteady"
        return [busy] if self.load > BUSY_LOAD else []


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name as the kernel tells it, else what Python knows."""
    told = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.is_file() else ""
    found = re.search(r"^model name\s*:(.*)$", told, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()
