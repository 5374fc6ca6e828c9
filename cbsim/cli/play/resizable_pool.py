"""KV blocks known by number whose number can change while requests hold some; `self` is the replica."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cbsim.base.records import record_class
from cbsim.core.layout import BLOCK, KEY, NOBODY
from cbsim.core.pool import forget, link_after, place_of_key, row_of
from cbsim.workload.request import Request


def resize(self: Any, num_blocks: int, holders: Iterable[Request]) -> None:
    """Add blocks at the end, or give up free ones; `holders` are all requests that hold blocks.

    Given up are those that would be used next, whose content is worth least. Blocks stay numbered from 0
    without a gap: those beyond the new end take the numbers of those given up. Raises RuntimeError for fewer
    blocks than are in use.
    """
    own = self.own
    num_used, num_more = own.num_blocks - own.num_free, num_blocks - own.num_blocks
    if num_blocks < num_used:
        raise RuntimeError(f"{num_used} KV blocks are in use, {num_blocks} wanted in all")
    free = free_blocks(self)
    self.blocks.pop()
    free = grow(self, num_blocks, free) if num_more >= 0 else shrink(self, num_blocks, free, holders)
    self.blocks.append(new_block())
    own.num_blocks = num_blocks
    own.num_free += num_more
    queue_up(self, free)


def free_blocks(self: Any) -> list[int]:
    """The free blocks, the one to be used next first."""
    end = self.own.num_blocks
    found, at = [], self.blocks[end].next_free
    while at != end:
        found.append(at)
        at = self.blocks[at].next_free
    return found


def grow(self: Any, num_blocks: int, free: list[int]) -> list[int]:
    """Add blocks behind the last; they are used before the free ones there are."""
    added = range(self.own.num_blocks, num_blocks)
    self.blocks.extend(new_block() for _ in added)
    if self.own.prefix_caching:
        rehash(self.keys, 2 * (num_blocks + 1))
    return [*added, *free]


def shrink(self: Any, num_blocks: int, free: list[int], holders: Iterable[Request]) -> list[int]:
    """Give up free blocks from the front of their queue; returns those left, by their new numbers."""
    num_given_up = self.own.num_blocks - num_blocks
    given_up = set(free[:num_given_up])
    for block in given_up:
        forget(self, block)
    vacant = sorted(block for block in given_up if block < num_blocks)
    beyond = [block for block in range(num_blocks, self.own.num_blocks) if block not in given_up]
    new = dict(zip(beyond, vacant, strict=True))
    for block, number in new.items():
        renumber(self, block, number)
    for request in holders:
        for group in range(self.own.num_groups if request.num_blocks else 0):
            row = row_of(self, request, group)
            table = self.tables[row]
            for place in range(self.shares[row].num_places):
                table[place] = new.get(table[place], table[place])
    del self.blocks[num_blocks:]
    return [new.get(block, block) for block in free[num_given_up:]]


def renumber(self: Any, block: int, number: int) -> None:
    """Let a block take the number of another, which nobody holds or looks up."""
    blocks = self.blocks
    moved = blocks[number] = blocks[block]
    if moved.key == NOBODY:
        return
    entry = self.keys[place_of_key(self.keys, moved.key)]
    if moved.last_copy == NOBODY:
        entry.first = number
    else:
        blocks[moved.last_copy].next_copy = number
    if moved.next_copy == NOBODY:
        entry.last = number
    else:
        blocks[moved.next_copy].last_copy = number


def rehash(keys: list[Any], size: int) -> None:
    """Make the table of contents as long as so many, where it is shorter."""
    if size <= len(keys):
        return
    known = [entry for entry in keys if entry.key != NOBODY]
    keys[:] = [record_class(KEY)(NOBODY, NOBODY, NOBODY) for _ in range(size)]
    for entry in known:
        keys[place_of_key(keys, entry.key)] = entry


def queue_up(self: Any, free: list[int]) -> None:
    """Make these the free blocks, in this order of use."""
    end = self.own.num_blocks
    head = self.blocks[end]
    head.next_free = head.last_free = end
    for block in free:
        link_after(self.blocks, head.last_free, block)


def new_block() -> Any:
    """A block that holds nothing."""
    block = record_class(BLOCK)(*[0] * len(BLOCK.names or ()))
    block.key = block.next_copy = block.last_copy = NOBODY
    return block
