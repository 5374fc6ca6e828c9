"""A GPU of known times in place of `torch.cuda`: a host's clock, a GPU's, and a queue between them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

LAUNCH_S, GRAPH_LAUNCH_S = 5e-6, 1.5e-4
"""What the host needs to launch a kernel, and a graph: here longer than a flush lasts."""
GRAPH_START_S = 5e-6
FLUSH_S, TINY_S = 7.5e-5, 1.5e-6
CYCLES_PER_S = 1.9e9
BIG_ELEMENTS = 2**20


class FakeCuda:
    """Stands where a module uses `torch.cuda`. `kernel` is what runs on it."""

    def __init__(self) -> None:
        self.host_s = 0.0
        self.gpu_s = 0.0
        self.captured: list[float] | None = None
        """Of a capture under way the seconds of its kernels."""
        self.stream_now: Any = "the usual stream"
        self.fails: Exception | None = None
        """Raised at the end of every capture, which then doesn't leave its stream, as torch 2.11."""
        self.num_graphs = 0
        self.tick_s = 0.0
        """What lies between two events at least, where work is done that this GPU knows nothing of."""
        self.error: Exception | None = None
        """Raised by `synchronize`."""
        owner = self

        class Event:
            def __init__(self, enable_timing: bool = False) -> None:
                self.at_s = 0.0

            def record(self) -> None:
                owner.gpu_s = self.at_s = max(owner.gpu_s, owner.host_s) + owner.tick_s

            def synchronize(self) -> None:
                owner.host_s = max(owner.host_s, self.at_s)

            def elapsed_time(self, other: Any) -> float:
                return 1e3 * float(other.at_s - self.at_s)

        class CUDAGraph:
            kernels: tuple[float, ...] = ()

            def replay(self) -> None:
                owner.host_s += GRAPH_LAUNCH_S
                owner.gpu_s = max(owner.gpu_s, owner.host_s) + GRAPH_START_S + sum(self.kernels)

            def reset(self) -> None:
                self.kernels = ()

        self.Event, self.CUDAGraph = Event, CUDAGraph

    def kernel(self, seconds: float) -> None:
        """Launch a kernel, or put it into the graph under way."""
        if self.captured is not None:
            self.captured.append(seconds)
            return
        self.host_s += LAUNCH_S
        self.gpu_s = max(self.gpu_s, self.host_s) + seconds

    @contextmanager
    def graph(self, graph: Any, pool: Any = None) -> Iterator[None]:
        before, self.stream_now, self.captured = self.stream_now, "a graph's own stream", []
        try:
            yield
        finally:
            graph.kernels, self.captured = tuple(self.captured), None
            if self.fails is not None:
                raise self.fails
            self.stream_now = before
        self.num_graphs += 1

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before, self.stream_now = self.stream_now, stream
        yield
        self.stream_now = before

    def set_stream(self, stream: Any) -> None:
        self.stream_now = stream

    def current_stream(self, device: Any = None) -> Any:
        return self.stream_now if isinstance(self.stream_now, _Stream) else _Stream(self.stream_now)

    def Stream(self, device: Any = None) -> Any:
        return _Stream("a side stream")

    def synchronize(self, device: Any = None) -> None:
        if self.error is not None:
            raise self.error
        self.host_s = max(self.host_s, self.gpu_s)

    def empty_cache(self) -> None:
        """Nothing is held."""

    def graph_pool_handle(self) -> Any:
        return "a pool"

    def _sleep(self, cycles: int) -> None:
        self.kernel(cycles / CYCLES_PER_S)


class _Stream:
    def __init__(self, name: Any) -> None:
        self.name = getattr(name, "name", name)

    def wait_stream(self, other: Any) -> None:
        """Everything is in order anyway."""


class WithCuda:
    """torch, with that GPU."""

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


class WithTensors(WithCuda):
    """The same with tensors there that are written in known times."""

    def empty(self, size: int, **_: object) -> Any:
        return _Tensor(self.cuda, size)

    zeros = empty


class _Tensor:
    def __init__(self, cuda: FakeCuda, size: int) -> None:
        self.cuda, self.size = cuda, size

    def zero_(self) -> None:
        self.cuda.kernel(FLUSH_S if self.size > BIG_ELEMENTS else TINY_S)

    def add_(self, number: float) -> None:
        self.cuda.kernel(TINY_S)

    def __getitem__(self, part: slice) -> Any:
        return _Tensor(self.cuda, part.stop)
