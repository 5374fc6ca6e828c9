"""BlockTables: the scheduler's block numbers, which are rows of the real KV cache, as arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cbsim.core.stepping import Stepper
from cbsim.workload.request import Request


class BlockTables:
    """Block tables of a replica's running requests, of which only what is new is written at each look."""

    def __init__(self, replica: Stepper) -> None:
        self._replica = replica
        self._tables: dict[int, NDArray[np.int64]] = {}
        self._lengths: dict[int, tuple[int, int]] = {}
        """Blocks written, and the request's preemptions when they were: each takes all of its blocks."""

    def table(self, request: Request) -> NDArray[np.int64]:
        """The blocks it holds now, in order of position; the array stays as it is while the request runs."""
        blocks = self._replica.blocks_of(request)
        length, num_preemptions = self._lengths.get(request.index, (0, 0))
        if num_preemptions != request.num_preemptions:
            length = 0
        if length == 0 or len(blocks) > len(self._tables[request.index]):
            # A new array: steps under way have parts of the old one.
            self._tables[request.index] = np.zeros(2 * len(blocks), dtype=np.int64)
            length = 0
        table = self._tables[request.index]
        table[length : len(blocks)] = blocks[length:]
        self._lengths[request.index] = len(blocks), request.num_preemptions
        return table[: len(blocks)]

    def forget(self, request: Request) -> None:
        """A request has ended."""
        self._tables.pop(request.index, None)
        self._lengths.pop(request.index, None)
