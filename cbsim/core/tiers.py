"""Tiers of KV below the GPU: host memory, a disk, a store that replicas share.

A block gets into the first tier when its content becomes known, or when the GPU's cache drops it; what a full
tier drops, its least recently used, goes to the next one. A lookup goes on in the tiers where the GPU's cache
ends; what is found is brought back, one load of a tier after the other.
"""

from __future__ import annotations

from typing import Any

from cbsim.base.binding import apart
from cbsim.core.contents import empty, hold, key_at, link_after, link_of, place_of_key, unlink
from cbsim.core.layout import NOBODY


def store_through(self: Any, key: int) -> None:
    """A content has become known on the GPU."""
    if self.own.num_tiers and self.config.stores_through:
        store(self, key)


def store_evicted(self: Any, key: int) -> None:
    """The GPU's cache drops what a block holds, `NOBODY` for nothing."""
    if key != NOBODY and self.own.num_tiers and not self.config.stores_through:
        store(self, key)


@apart
def store(self: Any, key: int) -> None:
    """Put a content into the first tier; what that drops goes to the next one, and so on."""
    tier = 0
    while key != NOBODY and tier < self.own.num_tiers:
        place = self.stores[tier]
        key = put(self.tiers[place], self.tier_blocks[place], self.tier_keys[place], key)
        tier += 1


def put(tier: Any, blocks: Any, keys: Any, key: int) -> int:
    """Put a content into a tier, as the one used last. Returns what the tier drops, or `NOBODY`."""
    end = tier.num_blocks
    entry = keys[place_of_key(keys, key)]
    if entry.key != NOBODY:
        use(tier, blocks, entry.first)
        return NOBODY
    number = blocks[end].next_free
    dropped = blocks[number].key
    if dropped != NOBODY:
        empty(blocks, keys, number)
    hold(blocks, keys, number, key)
    use(tier, blocks, number)
    return int(dropped)


def use(tier: Any, blocks: Any, number: int) -> None:
    """A block of a tier is the one used last."""
    unlink(blocks, number)
    link_after(blocks, blocks[tier.num_blocks].last_free, number)


@apart
def take_back(self: Any, key: int) -> None:
    """A content that was stored as it became known will not be computed."""
    if key != NOBODY and self.own.num_tiers and self.config.stores_through:
        drop(self, self.stores[0], key)


def drop(self: Any, place: int, key: int) -> None:
    """A tier no longer holds a content."""
    blocks, keys = self.tier_blocks[place], self.tier_keys[place]
    entry = keys[place_of_key(keys, key)]
    if entry.key != NOBODY:
        empty(blocks, keys, entry.first)


def tier_of(self: Any, key: int) -> int:
    """The first tier that holds a content, `NOBODY` if none does."""
    for tier in range(self.own.num_tiers):
        keys = self.tier_keys[self.stores[tier]]
        if keys[place_of_key(keys, key)].key != NOBODY:
            return tier
    return NOBODY


@apart
def num_in_tiers(self: Any, request: Any, num_cached: int, num_known: int) -> int:
    """Tokens behind the first `num_cached` of a request, of which `num_known` are known, that tiers hold.

    At least one known token is left to compute.
    """
    size, link = self.own.block_size, request.first_link
    place = num_cached // size
    while place < (num_known - 1) // size:
        link = link_of(self, request, link, 0, place)
        if tier_of(self, key_at(self, link, 0, place)) == NOBODY:
            break
        place += 1
    return int(max(0, place * size - num_cached))


@apart
def load(self: Any, request: Any, num_cached: int, num_tokens: int, now: float) -> float:
    """Bring `num_tokens` tokens behind the first `num_cached` from the tiers. Returns when they are there.

    A tier serves one load after the other, each after its latency.
    """
    size, end_s = self.own.block_size, now
    for tier in range(self.own.num_tiers):
        num_blocks = 0
        place_of_tier = self.stores[tier]
        store_, blocks = self.tiers[place_of_tier], self.tier_blocks[place_of_tier]
        keys = self.tier_keys[place_of_tier]
        for place in range(num_cached // size, (num_cached + num_tokens) // size):
            link = link_of(self, request, request.first_link, 0, place)
            key = key_at(self, link, 0, place)
            if tier_of(self, key) == tier:
                use(store_, blocks, keys[place_of_key(keys, key)].first)
                num_blocks += 1
        if num_blocks:
            start_s = store_.free_at_s if store_.free_at_s > now else now
            store_.free_at_s = start_s + store_.latency_s + num_blocks * store_.block_s
            store_.num_tokens_loaded += num_blocks * size
            end_s = max(end_s, store_.free_at_s)
    return float(end_s)


@apart
def lose_tiers(self: Any) -> None:
    """What the tiers of a replica alone hold is lost with it."""
    for tier in range(self.own.num_tiers):
        place = self.stores[tier]
        if not self.tiers[place].is_shared:
            for number in range(self.tiers[place].num_blocks):
                if self.tier_blocks[place][number].key != NOBODY:
                    empty(self.tier_blocks[place], self.tier_keys[place], number)
