"""What blocks hold: a ring in the order in which they are used again, and a hash table by content.

Both are of the KV cache on the GPU and of the tiers below it. A content is a key of `key_at`; the last of
the blocks is the head of the ring.
"""

from __future__ import annotations

from typing import Any

from cbsim.base.binding import apart
from cbsim.core.layout import NOBODY

NODE_FACTOR = 4294967296
"""2^32: a key holds a node and, below it, a length."""


def end_of_key(self: Any, number: int, place: int) -> int:
    """The tokens that the name of a block covers: all up to its end, and with EAGLE the one behind it."""
    return int((place + 1) * self.groups[number].block_size + self.own.looks_ahead)


def link_of(self: Any, request: Any, link: int, number: int, place: int) -> int:
    """The row of the segment with the last token that a block's name covers, from an earlier one's row on."""
    num_tokens = end_of_key(self, number, place)
    while link + 1 < request.end_link and self.segments[link + 1].start < num_tokens:
        link += 1
    return link


def key_at(self: Any, link: int, number: int, place: int) -> int:
    """A name for all tokens up to a block's end in a group, equal for equal tokens, and only for those.

    A sequence is a chain of segments, each used from its offset 0: it is told by the chain of whole segments
    before the last one (a node) and its length in that one.
    """
    segment = self.segments[link]
    length = end_of_key(self, number, place) - segment.start
    return segment.node * NODE_FACTOR + length * self.own.num_groups + number


def num_behind(group: Any, num_tokens: int) -> int:
    """Blocks that no later token attends to once `num_tokens` are computed: they lie behind the window."""
    if group.window == 0 or num_tokens < group.window:
        return 0
    return int((num_tokens - group.window + 1) // group.block_size)


@apart
def hold(blocks: Any, keys: Any, number: int, key: int) -> None:
    """A block holds what `key` names, and lookups find it behind those that did before."""
    block = blocks[number]
    block.key = key
    block.next_copy = NOBODY
    at = place_of_key(keys, key)
    entry = keys[at]
    if entry.key == NOBODY:
        entry.key = key
        entry.first = number
        block.last_copy = NOBODY
    else:
        blocks[entry.last].next_copy = number
        block.last_copy = entry.last
    entry.last = number


@apart
def empty(blocks: Any, keys: Any, number: int) -> None:
    """What a block holds is lost; it holds something."""
    block = blocks[number]
    at = place_of_key(keys, block.key)
    block.key = NOBODY
    before, after = block.last_copy, block.next_copy
    if before != NOBODY:
        blocks[before].next_copy = after
    else:
        keys[at].first = after
    if after != NOBODY:
        blocks[after].last_copy = before
    else:
        keys[at].last = before
    if keys[at].first == NOBODY:
        remove_key(keys, at)


@apart
def unlink(blocks: Any, number: int) -> None:
    """Take a block out of the free queue."""
    block = blocks[number]
    blocks[block.last_free].next_free = block.next_free
    blocks[block.next_free].last_free = block.last_free


@apart
def link_after(blocks: Any, before: int, number: int) -> None:
    """Put a block into the free queue behind another, or behind the head."""
    after = blocks[before].next_free
    blocks[before].next_free = number
    blocks[number].last_free = before
    blocks[number].next_free = after
    blocks[after].last_free = number


def home_of(keys: Any, key: int) -> int:
    """Where a key belongs: its bits well mixed (as MurmurHash3 does), or neighbours would crowd."""
    mixed = ((key // NODE_FACTOR) * 2654435761 + (key % NODE_FACTOR) * 2246822519) % NODE_FACTOR
    mixed = ((mixed ^ (mixed >> 15)) * 739982445) % NODE_FACTOR
    return (mixed ^ (mixed >> 12)) % len(keys)


def place_of_key(keys: Any, key: int) -> int:
    """Where a key is, or would be."""
    at = home_of(keys, key)
    while keys[at].key != NOBODY and keys[at].key != key:
        at = (at + 1) % len(keys)
    return at


def remove_key(keys: Any, at: int) -> None:
    """Remove a key; those behind it that were pushed past their home move up."""
    size = len(keys)
    keys[at].key = NOBODY
    later = (at + 1) % size
    while keys[later].key != NOBODY:
        if (later - home_of(keys, keys[later].key)) % size >= (later - at) % size:
            keys[at].key = keys[later].key
            keys[at].first = keys[later].first
            keys[at].last = keys[later].last
            keys[later].key = NOBODY
            at = later
        later = (later + 1) % size
