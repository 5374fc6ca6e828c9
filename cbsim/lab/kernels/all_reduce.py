"""How long devices that share each layer take to add up what they computed."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from cbsim.lab.kernels.shard import Shard
from cbsim.lab.kernels.timing import Device, Timing

NUM_LAYERS = 4
"""Layers of a run, so that they follow each other as in a step."""


def can_all_reduce(device: Device, num_devices: int) -> bool:
    """Whether there are so many devices: GPUs with NCCL, or processes on a CPU with gloo."""
    if num_devices == 1 or not dist.is_available():
        return False
    if device.is_cuda:
        return torch.cuda.device_count() >= num_devices and dist.is_nccl_available()
    return dist.is_gloo_available()


def time_all_reduces(
    shard: Shard, device: Device, tokens: Sequence[int], num_runs: int, num_warmups: int
) -> dict[int, Timing]:
    """One layer's two all-reduces by numbers of tokens, in a process for each device of the shard's group."""
    with tempfile.TemporaryDirectory() as folder:
        work = shard, device.torch_device.type, tokens, num_runs, num_warmups, folder
        spawn(_time, work, shard.tensor_parallel, daemon=True)  # type: ignore[no-untyped-call]
        seconds = torch.load(Path(folder, "seconds"))
    return {n: Timing.of(runs_s) for n, runs_s in zip(tokens, seconds.tolist(), strict=True)}


def _time(
    rank: int, shard: Shard, kind: str, tokens: Sequence[int], num_runs: int, num_warmups: int, folder: str
) -> None:
    """Seconds a layer in each run, by numbers of tokens; the first process writes them down."""
    torch.set_num_threads(1)
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    backend, meet = "nccl" if kind == "cuda" else "gloo", f"file://{folder}/group"
    dist.init_process_group(backend, meet, rank=rank, world_size=shard.tensor_parallel)
    seconds = torch.empty(len(tokens), num_warmups + num_runs, dtype=torch.float64)
    for row, num_tokens in enumerate(tokens):
        state = torch.zeros(num_tokens, shard.model.hidden_size, dtype=shard.dtype, device=device)
        for run in range(seconds.shape[1]):
            dist.barrier()
            start = perf_counter()
            for _ in range(2 * NUM_LAYERS):
                dist.all_reduce(state)
            if kind == "cuda":
                torch.cuda.synchronize(device)
            seconds[row, run] = (perf_counter() - start) / NUM_LAYERS
    if rank == 0:
        torch.save(seconds[:, num_warmups:], Path(folder, "seconds"))
    dist.destroy_process_group()
