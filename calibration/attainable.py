"""What a device attains, measured: bytes a second of a large copy, FLOP a second of a large product."""

from __future__ import annotations

from functools import partial

import torch

from cbsim.base.units import MIB
from cbsim.lab.kernels.shard import DTYPES
from cbsim.lab.kernels.timing import Call, Device, Timer

COPY_BYTES, PRODUCT_SIZE = 2048 * MIB, 8192
"""Of a GPU: several times its last cache, and enough rows to fill it."""
CPU_COPY_BYTES, CPU_PRODUCT_SIZE = 32 * MIB, 256


def attainable_bytes_per_s(device: Device, timer: Timer) -> float:
    """Bytes a second of a copy within the device, read and written ones counted."""
    num_bytes = COPY_BYTES if device.is_cuda else CPU_COPY_BYTES
    source = torch.empty(num_bytes, dtype=torch.uint8, device=device.torch_device).random_()
    target = torch.empty_like(source)
    seconds = timer.time(partial(_repeated, partial(target.copy_, source))).median_s
    return 2 * num_bytes / seconds


def attainable_flop_per_s(device: Device, timer: Timer, dtype: str) -> float:
    """FLOP a second of a product of two square matrices of random numbers, which zeros would flatter."""
    size = PRODUCT_SIZE if device.is_cuda else CPU_PRODUCT_SIZE
    one, other = (
        torch.empty(size, size, dtype=DTYPES[dtype], device=device.torch_device).normal_() for _ in range(2)
    )
    out = torch.empty_like(one)
    seconds = timer.time(partial(_repeated, partial(torch.mm, one, other, out=out))).median_s
    return 2 * size**3 / seconds


def _repeated(call: Call, count: int) -> list[Call]:
    return [call] * count
