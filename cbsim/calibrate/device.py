"""Device: the machine that is timed, and whether a model fits on it."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import torch

from cbsim.calibrate.plan import Limits
from cbsim.errors import CalibrationError
from cbsim.kernels.shard import Shard
from cbsim.manifest import package_version
from cbsim.registry import did_you_mean
from cbsim.units import MIB, format_bytes

KINDS = ("cuda", "cpu")
BLOCK_SIZE = 16
KV_SHARE = 0.7
"""Share of what is free beside the weights that the KV cache takes; activations and graphs have the rest."""
MAX_CPU_KV_BYTES = 128 * MIB
MIN_KV_BLOCKS = 1024


@dataclass(frozen=True, slots=True)
class Device:
    """A device as it calls itself, and what it runs."""

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
    software = {name: package_version(name) for name in ("cbsim", "torch", "triton", "numpy")}
    software["python"] = platform.python_version()
    if kind == "cpu":
        software["system"] = platform.platform()
        software["threads"] = str(torch.get_num_threads())
        return Device(torch.device("cpu"), _processor_name(), _free_host_bytes(), 0, software)
    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = f"torch {torch.__version__} is built without it" if built is None else "torch finds no GPU"
        raise CalibrationError(f"--device cuda: no CUDA here: {why}; allowed: --device cpu")
    device = torch.device("cuda", torch.cuda.current_device())
    properties = torch.cuda.get_device_properties(device)
    software["cuda"] = str(torch.version.cuda)
    software["driver"] = _driver_version()
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return Device(device, properties.name, free_bytes, properties.L2_cache_size, software)


@dataclass(frozen=True, slots=True)
class Room:
    """How much KV cache fits beside a model's weights."""

    num_blocks: int
    """Blocks of one layer; a whole step has them shared out over the layers."""
    limits: Limits


def find_room(device: Device, shard: Shard) -> Room:
    """What can be timed here. Raises `CalibrationError` if weights and a small KV cache don't fit."""
    block_bytes = BLOCK_SIZE * shard.layer_kv_token_bytes
    num_layers = shard.model.num_layers
    wanted = Limits()
    # A sequence's last block is only partly filled: count one block more for each.
    partial_tokens = wanted.max_decodes * BLOCK_SIZE
    wanted_tokens = max(wanted.max_kv_tokens, (wanted.max_step_kv_tokens + partial_tokens) * num_layers)
    free_bytes = device.free_bytes - shard.weight_bytes
    kv_bytes = min(int(free_bytes * KV_SHARE), wanted_tokens * shard.layer_kv_token_bytes)
    least_bytes = MIN_KV_BLOCKS * num_layers * block_bytes
    if not device.is_cuda:
        kv_bytes = min(kv_bytes, max(MAX_CPU_KV_BYTES, least_bytes))
    if kv_bytes < least_bytes:
        needed = shard.weight_bytes + int(least_bytes / KV_SHARE)
        raise CalibrationError(
            f"model {shard.model.name} needs {format_bytes(needed)} for weights and a small KV cache; "
            f"{device.name} has {format_bytes(device.free_bytes)} free; allowed: a smaller model or a"
            f" higher --tp"
        )
    num_blocks = kv_bytes // block_bytes
    kv_tokens = _stable(num_blocks * BLOCK_SIZE - partial_tokens)
    step_kv_tokens = _stable(num_blocks // num_layers * BLOCK_SIZE - partial_tokens)
    if device.is_cuda:
        limits = Limits(
            max_context=min(wanted.max_context, kv_tokens),
            max_kv_tokens=min(wanted.max_kv_tokens, kv_tokens),
            max_step_kv_tokens=min(wanted.max_step_kv_tokens, step_kv_tokens),
        )
    else:
        longest = shard.model.max_model_len
        limits = Limits(
            max_tokens=longest,
            max_chunk_tokens=longest,
            max_context=longest,
            max_kv_tokens=min(32 * longest, kv_tokens),
            max_step_kv_tokens=min(16 * longest, step_kv_tokens),
            max_decodes=128,
        )
    return Room(num_blocks, limits)


def _stable(num_tokens: int) -> int:
    """A power of two at most that: a run that is resumed with a little less free memory has the same plan."""
    return 1 << max(0, num_tokens.bit_length() - 1)


def flush_bytes(device: Device) -> int:
    """How much to write between runs so that nothing of the last one is left in the L2 cache."""
    return max(4 * device.l2_bytes, 256 * MIB)


def _processor_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _free_host_bytes() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _driver_version() -> str:
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return "unknown"
    words = text.splitlines()[0].split()
    versions = [word for word in words if word[0].isdigit() and "." in word]
    return versions[0] if versions else "unknown"
