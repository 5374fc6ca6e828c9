"""LivePool: the scheduler's blocks, numbered as in the real KV cache."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cbsim.schedulers.kvcache import IdentityPool
from cbsim.workload.request import Request


class LivePool(IdentityPool):
    """An `IdentityPool` that hands out block tables as arrays, and remembers those just released."""

    def __init__(
        self, num_blocks: int, block_size: int, *, prefix_caching: bool, unknown_first: bool = True
    ) -> None:
        super().__init__(num_blocks, block_size, prefix_caching=prefix_caching, unknown_first=unknown_first)
        self._tables: dict[int, NDArray[np.int64]] = {}
        self._lengths: dict[int, int] = {}
        self._released: dict[int, list[int]] = {}

    def release(self, request: Request) -> None:
        """See `BlockPool.release`; the blocks keep their content until the next step writes to them."""
        if request.blocks:
            self._released[request.index] = list(request.blocks)
        self._lengths.pop(request.index, None)
        super().release(request)

    def released(self, request: Request) -> list[int]:
        """The blocks that a request held before it last released them."""
        return self._released[request.index]

    def forget(self, request: Request) -> None:
        """See `BlockPool.forget`."""
        super().forget(request)
        self._released.pop(request.index, None)
        self._tables.pop(request.index, None)
        self._lengths.pop(request.index, None)

    def table(self, request: Request) -> NDArray[np.int64]:
        """The blocks it holds now, in order of position; the array stays as it is while the request runs."""
        length = self._lengths.get(request.index, 0)
        if length == len(request.blocks):
            return self._tables[request.index][:length] if length else np.zeros(0, dtype=np.int64)
        if length == 0 or len(request.blocks) > len(self._tables[request.index]):
            fresh = np.zeros(2 * len(request.blocks), dtype=np.int64)
            fresh[: len(request.blocks)] = request.blocks
            self._tables[request.index] = fresh
        else:
            self._tables[request.index][length : len(request.blocks)] = request.blocks[length:]
        self._lengths[request.index] = len(request.blocks)
        return self._tables[request.index][: len(request.blocks)]
