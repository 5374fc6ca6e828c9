"""Capturing work into a CUDA graph, and what to do where that fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

R = TypeVar("R")


class CaptureFailed(RuntimeError):
    """Work could not be captured into a CUDA graph.

    torch's allocator may stay as it is during a capture, and later captures of the process with it: work can
    still be computed, but nothing should be timed in this process any more.
    """

    def __init__(self, error: BaseException) -> None:
        """`error` is what torch said."""
        super().__init__(one_line(error))
        self.is_of_memory = any(isinstance(each, torch.OutOfMemoryError) for each in _chain(error))
        """Whether memory ran out while it was captured; the work itself can be captured then."""


def captured(run: Callable[[], R], pool: Any = None) -> tuple[Any, R]:
    """A CUDA graph of `run` and what it returned, whose tensors each replay fills anew.

    Raises `CaptureFailed`, or `torch.OutOfMemoryError` where memory ran out and nothing else went wrong.
    The current stream is what it was, also then: `torch.cuda.graph` leaves its own where ending fails.
    """
    graph: Any = torch.cuda.CUDAGraph()
    before = torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph, pool=pool):
            returned = run()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        torch.cuda.set_stream(before)
        raise CaptureFailed(error) from error
    return graph, returned


def one_line(error: BaseException) -> str:
    """What an exception says, its kind and its first line."""
    if isinstance(error, CaptureFailed):
        return str(error)
    told = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {told}" if told else type(error).__name__


def _chain(error: BaseException | None) -> list[BaseException]:
    """An exception and those it was raised while handling."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found
