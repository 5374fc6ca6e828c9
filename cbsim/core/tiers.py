"""Tiers of KV below the GPU: host memory, a disk, a store that replicas share.

A block is written to the first tier when it has been computed, or when the GPU's cache drops it, and can be
hit there once that is done; what a full tier drops for it, its least recently used, is written to the next
one. A lookup goes on in the tiers where the GPU's cache ends, and what is found is brought back. All of this
goes beside the steps and takes its share of each tier's bandwidth: see `cbsim.core.links`.
"""

from __future__ import annotations

from typing import Any

from cbsim.base.binding import apart
from cbsim.core.contents import (
    empty,
    hold,
    key_at,
    link_after,
    link_of,
    num_behind,
    place_of_key,
    unlink,
)
from cbsim.core.layout import NOBODY

# What is written


def store_evicted(self: Any, key: int) -> None:
    """The GPU's cache drops what a block holds, `NOBODY` for nothing."""
    if key != NOBODY and self.own.num_tiers and not self.config.stores_through:
        store(self, key)


@apart
def store(self: Any, key: int) -> None:
    """Write a content to the first tier; what that drops goes to the next one, and so on."""
    tier = 0
    while key != NOBODY and tier < self.own.num_tiers:
        key = put(self, self.stores[tier], key)
        tier += 1


def put(self: Any, place: int, key: int) -> int:
    """Have a content written to a tier, as the one used last. Returns what the tier drops, or `NOBODY`.

    If all that it holds is still being written it takes in nothing.
    """
    tier, blocks, keys = self.tiers[place], self.tier_blocks[place], self.tier_keys[place]
    entry = keys[place_of_key(keys, key)]
    if entry.key != NOBODY:
        use(tier, blocks, entry.first)
        return NOBODY
    number = blocks[tier.num_blocks].next_free
    if number == tier.num_blocks:
        return NOBODY
    dropped = blocks[number].key
    if dropped != NOBODY:
        empty(blocks, keys, number)
    hold(blocks, keys, number, key)
    line = line_of(self, tier)
    unlink(blocks, number)
    link_after(blocks, blocks[line].last_free, number)
    blocks[number].num_holders = 1
    blocks[line].num_holders += 1
    return int(dropped)


def line_of(self: Any, tier: Any) -> int:
    """The head of the ring of blocks that a replica writes to a tier."""
    return int(tier.num_blocks + 1 + (self.own.replica if tier.is_shared else 0))


def use(tier: Any, blocks: Any, number: int) -> None:
    """A block of a tier is the one used last."""
    if blocks[number].num_holders == 0:
        unlink(blocks, number)
        link_after(blocks, blocks[tier.num_blocks].last_free, number)


def num_to_write(self: Any, place: int) -> int:
    """Blocks that a replica has to write to a tier and that go together now, as none of its are under way."""
    head = self.tier_blocks[place][line_of(self, self.tiers[place])]
    if head.num_seen == 0:
        head.num_seen = head.num_holders
        return int(head.num_seen)
    return 0


@apart
def end_write(self: Any, place: int) -> None:
    """What a replica wrote to a tier is there, and can be hit."""
    tier, blocks = self.tiers[place], self.tier_blocks[place]
    line = line_of(self, tier)
    head = blocks[line]
    for _ in range(head.num_seen):
        number = head.next_free
        blocks[number].num_holders = 0
        use(tier, blocks, number)
    head.num_holders -= head.num_seen
    head.num_seen = 0


@apart
def lose_tiers(self: Any) -> None:
    """A replica has failed: what it writes is lost, and what tiers that are its own hold."""
    for tier in range(self.own.num_tiers):
        place = self.stores[tier]
        of, blocks, keys = self.tiers[place], self.tier_blocks[place], self.tier_keys[place]
        line = line_of(self, of)
        head = blocks[line]
        for _ in range(head.num_holders):
            number = head.next_free
            blocks[number].num_holders = 0
            empty(blocks, keys, number)
            unlink(blocks, number)
            link_after(blocks, of.num_blocks, number)
        head.num_holders = head.num_seen = 0
        if not of.is_shared:
            for number in range(of.num_blocks):
                if blocks[number].key != NOBODY:
                    empty(blocks, keys, number)


# What is found


def tier_of(self: Any, key: int) -> int:
    """The first tier that a content can be brought from, `NOBODY` if there is none."""
    for tier in range(self.own.num_tiers):
        keys = self.tier_keys[self.stores[tier]]
        entry = keys[place_of_key(keys, key)]
        if entry.key != NOBODY and self.tier_blocks[self.stores[tier]][entry.first].num_holders == 0:
            return tier
    return NOBODY


@apart
def num_in_tiers(self: Any, request: Any, num_cached: int, num_known: int) -> int:
    """Tokens behind the first `num_cached` of a request, of which `num_known` are known, that tiers hold.

    At least one known token is left to compute. As in the GPU's cache, groups without a window need all
    blocks, and one with a window those that the next token attends to.
    """
    own = self.own
    most = (num_known - 1) // own.hit_size * own.hit_size
    for number in range(own.num_groups):
        size = self.groups[number].block_size
        if self.groups[number].window == 0:
            link, place = request.first_link, num_cached // size
            while place < most // size:
                link = link_of(self, request, link, number, place)
                if tier_of(self, key_at(self, link, number, place)) == NOBODY:
                    most = place * size // own.hit_size * own.hit_size
                place += 1
    before = NOBODY
    while before != most:
        before = most
        for number in range(own.num_groups):
            if self.groups[number].window:
                most = num_in_window(self, request, number, num_cached, most)
    return int(max(0, most - num_cached))


def num_in_window(self: Any, request: Any, number: int, num_cached: int, most: int) -> int:
    """Leading tokens, at most `most`, behind whose end a group finds what its window covers.

    That is in tiers, but for the first `num_cached` tokens, which it has.
    """
    group, length = self.groups[number], most
    size = group.block_size
    place = length // size - 1
    while length > num_cached and place >= max(num_cached // size, num_behind(group, length)):
        link = link_of(self, request, request.first_link, number, place)
        if tier_of(self, key_at(self, link, number, place)) == NOBODY:
            length = place * size // self.own.hit_size * self.own.hit_size
            place = length // size
        place -= 1
    return int(max(length, num_cached))


# What is brought


@apart
def load(self: Any, request: Any, num_cached: int, num_below: int, num_tokens: int) -> int:
    """Note how many blocks of a request each tier is to bring. Returns how many tiers bring any.

    Those of the `num_below` tokens behind the first `num_cached`, less those that no window covers once the
    request has `num_tokens`.
    """
    own, counts, counted = self.own, self.loads[request.index], 0
    for number in range(own.num_groups):
        if self.groups[number].window == 0:
            counted = number
    for number in range(own.num_groups):
        size = self.groups[number].block_size
        first = max(num_cached // size, num_behind(self.groups[number], num_tokens))
        for place in range(first, (num_cached + num_below) // size):
            link = link_of(self, request, request.first_link, number, place)
            key = key_at(self, link, number, place)
            tier = tier_of(self, key)
            of, keys = self.tiers[self.stores[tier]], self.tier_keys[self.stores[tier]]
            use(of, self.tier_blocks[self.stores[tier]], keys[place_of_key(keys, key)].first)
            counts[tier] += 1
            if number == counted:
                of.num_tokens_loaded += size
    num_tiers = 0
    for tier in range(own.num_tiers):
        num_tiers += counts[tier] > 0
    return int(num_tiers)


@apart
def read_s(self: Any, request: Any, num_cached: int, num_below: int) -> float:
    """Seconds to bring `num_below` tokens behind the first `num_cached` of a request within a step.

    At the shares of the tiers' bandwidth that there are as it begins.
    """
    load(self, request, num_cached, num_below, num_cached + num_below)
    seconds = 0.0
    for tier in range(self.own.num_tiers):
        num_blocks = self.loads[request.index][tier]
        if num_blocks:
            of = self.tiers[self.stores[tier]]
            share = of.bytes_per_s / (of.num_links + 1)
            seconds = max(seconds, of.latency_s + num_blocks * of.block_bytes / share)
            of.num_to_read += num_blocks
            self.loads[request.index][tier] = 0
    return float(seconds)
