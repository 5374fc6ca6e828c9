"""Device: the machine that kernels run on, as it calls itself."""

from __future__ import annotations

import gc
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from cbsim.base.errors import CalibrationError
from cbsim.base.registry import did_you_mean
from cbsim.base.units import KIB
from cbsim.lab.bench.machine import cpu_name
from cbsim.results.manifest import package_version

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
