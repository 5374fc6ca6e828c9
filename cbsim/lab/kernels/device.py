"""Device: the machine that kernels run on, as it calls itself."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from cbsim.base.errors import CalibrationError
from cbsim.base.registry import did_you_mean
from cbsim.base.units import MIB
from cbsim.lab.kernels.device_memory import free_bytes

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

    @property
    def flush_bytes(self) -> int:
        """How much to write so that nothing of the last run is left in the L2 cache."""
        return max(4 * self.l2_bytes, 256 * MIB)


def open_device(kind: str) -> Device:
    """The first GPU, or this machine's processor. Raises `CalibrationError` if there is no such device."""
    if kind not in KINDS:
        raise CalibrationError(f"--device: unknown '{kind}'{did_you_mean(kind, KINDS)}")
    software = {package: _version(package) for package in PACKAGES}
    software["python"] = platform.python_version()
    if kind == "cpu":
        software["system"] = platform.platform()
        software["threads"] = str(torch.get_num_threads())
        cpu = torch.device("cpu")
        return Device(cpu, _processor_name(), free_bytes(cpu), 0, software)
    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = f"torch {torch.__version__} is built without it" if built is None else "torch finds no GPU"
        raise CalibrationError(f"--device cuda: no CUDA here: {why}; allowed: --device cpu")
    device = torch.device("cuda", torch.cuda.current_device())
    properties = torch.cuda.get_device_properties(device)
    software["cuda"] = str(torch.version.cuda)
    software["driver"] = _driver_version()
    return Device(device, properties.name, free_bytes(device), properties.L2_cache_size, software)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _processor_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _driver_version() -> str:
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return "unknown"
    words = text.splitlines()[0].split()
    versions = [word for word in words if word[0].isdigit() and "." in word]
    return versions[0] if versions else "unknown"
