"""What torch says of itself and of a device, before anything is computed there."""

from __future__ import annotations

import importlib.util
import platform
from dataclasses import dataclass
from typing import Any

import torch

from cbsim.lab.kernels.graph_capture import one_line
from cbsim.lab.kernels.timing import free_bytes
from cbsim.results.result import package_version


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """Software and one device. Of a device that isn't there `trouble` says why, and the rest is nothing."""

    kind: str
    """`cuda`, which AMD's GPUs are called too, or `cpu`."""
    python: str
    torch: str
    built_for: str
    """What this torch computes on: `CUDA 13.0`, `ROCm 6.4`, `CPUs alone`."""
    triton: str | None
    missing: tuple[str, ...]
    """Functions that this torch lacks, of those that the kernels call."""
    trouble: str = ""
    name: str = ""
    uuid: str = ""
    capability: tuple[int, int] | None = None
    """Of an NVIDIA GPU."""
    architectures: tuple[str, ...] = ()
    """GPUs that this torch has kernels for: `sm_90`; `compute_90` is what a driver can translate."""
    total_bytes: int = 0
    free_bytes: int = 0

    @property
    def is_amd(self) -> bool:
        """Whether it is torch for AMD's GPUs."""
        return self.built_for.startswith("ROCm")


WANTED = ("torch.nn.attention.varlen.varlen_attn", "torch.nn.functional.grouped_mm", "torch._scaled_mm")
"""Functions that kernels call, and old versions lack."""


def device_facts(kind: str) -> DeviceFacts:
    """Facts of the first device of a kind. Raises nothing: what doesn't work is told."""
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPUs alone"
    if torch.version.hip:
        built = f"ROCm {torch.version.hip}"
    triton = package_version("triton") if importlib.util.find_spec("triton") else None
    missing = tuple(name for name in WANTED if not _is_there(name))
    software = (kind, platform.python_version(), torch.__version__, built, triton, missing)
    if kind != "cuda":
        return DeviceFacts(*software)
    if not torch.cuda.is_available():
        return DeviceFacts(*software, trouble=_why_not())
    try:
        return DeviceFacts(*software, "", *_of_device())
    except RuntimeError as error:
        return DeviceFacts(*software, trouble=one_line(error))


def _of_device() -> tuple[Any, ...]:
    device = torch.device("cuda", torch.cuda.current_device())
    properties = torch.cuda.get_device_properties(device)
    is_nvidia = not torch.version.hip
    return (
        properties.name,
        str(getattr(properties, "uuid", "")),
        (properties.major, properties.minor) if is_nvidia else None,
        tuple(torch.cuda.get_arch_list()),
        properties.total_memory,
        free_bytes(device),
    )


def _why_not() -> str:
    """Why torch has no GPU."""
    if torch.version.cuda is None and not torch.version.hip:
        return "this torch is built for CPUs alone"
    try:
        torch.zeros(1, device="cuda")
    except (RuntimeError, AssertionError) as error:
        return one_line(error)
    return "torch finds no GPU"


def _is_there(function: str) -> bool:
    module, _, name = function.rpartition(".")
    try:
        return hasattr(importlib.import_module(module), name)
    except ImportError:
        return False
