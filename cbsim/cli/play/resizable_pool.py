"""PlayPool: numbered KV blocks whose number can change while requests hold some."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from cbsim.schedulers.kvcache import IdentityPool
from cbsim.workload.request import Request


class PlayPool(IdentityPool):
    """An `IdentityPool` that grows and shrinks by free blocks, and says what each block is.

    Without prefix caching it decides nothing that a plain `BlockPool` would not.
    """

    def num_holders(self, block: int) -> int:
        """Requests that hold a block; 0 if it is free."""
        return self._num_holders[block]

    def is_cached(self, block: int) -> bool:
        """Whether lookups know the content of a block."""
        return self._key_of[block] is not None

    def resize(self, num_blocks: int, holders: Iterable[Request]) -> None:
        """Add blocks at the end, or give up free ones; `holders` are all requests that hold blocks.

        Given up are those that would be used next, whose content is worth least. Blocks stay numbered from 0
        without a gap: those beyond the new end take the numbers of those given up. Raises RuntimeError for
        fewer blocks than are in use.
        """
        if num_blocks < self.num_used:
            raise RuntimeError(f"{self.num_used} KV blocks are in use, {num_blocks} wanted in all")
        if num_blocks >= self.num_blocks:
            self._grow(num_blocks)
        else:
            self._shrink(num_blocks, holders)

    def _grow(self, num_blocks: int) -> None:
        added = range(self.num_blocks, num_blocks)
        self._num_holders += [0] * len(added)
        self._key_of += [None] * len(added)
        self._free.update(dict.fromkeys(added))
        for block in reversed(added):
            self._free.move_to_end(block, last=False)
        self.num_free += len(added)
        self.num_blocks = num_blocks

    def _shrink(self, num_blocks: int, holders: Iterable[Request]) -> None:
        given_up: set[int] = set()
        for _ in range(self.num_blocks - num_blocks):
            block, _ = self._free.popitem(last=False)
            self._forget(block)
            given_up.add(block)
        vacant = sorted(block for block in given_up if block < num_blocks)
        beyond = [block for block in range(num_blocks, self.num_blocks) if block not in given_up]
        self._renumber(dict(zip(beyond, vacant, strict=True)), holders)
        del self._num_holders[num_blocks:], self._key_of[num_blocks:]
        self.num_free -= len(given_up)
        self.num_blocks = num_blocks

    def _renumber(self, new: dict[int, int], holders: Iterable[Request]) -> None:
        """Let blocks take the numbers of others, which nobody holds, lists or looks up."""
        for block, number in new.items():
            self._num_holders[number] = self._num_holders[block]
            key = self._key_of[number] = self._key_of[block]
            if key is not None:
                copies = self._copies[key]
                copies[copies.index(block)] = number
        self._free = OrderedDict.fromkeys(new.get(block, block) for block in self._free)
        for request in holders:
            request.blocks[:] = [new.get(block, block) for block in request.blocks]
