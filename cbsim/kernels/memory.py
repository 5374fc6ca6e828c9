"""How much memory a device has left."""

from __future__ import annotations

import gc
import os

import torch


def free_bytes(device: torch.device) -> int:
    """Bytes free on a GPU, or in this machine's memory; what torch holds without need is given back first."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
