"""How much memory a device has left."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import torch

from cbsim.base.units import KIB

MEMINFO = Path("/proc/meminfo")


def free_bytes(device: torch.device) -> int:
    """Bytes free on a GPU, or in this machine's memory; what torch holds without need is given back first.

    Of a machine's memory counts what Linux would take back from its file cache for the asking.
    """
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    try:
        lines = MEMINFO.read_text(encoding="ascii").splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * KIB
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
