"""The KV cache: blocks counted, and where it matters known by number and by what they hold.

vLLM's block pool (`vllm/v1/core/block_pool.py`): blocks without content are used before any cached one, then
cached blocks in order of release, a request's later blocks before its earlier ones. With `unknown_first` off
(vLLM before 0.33) every released block goes to the tail of the free queue.
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
from cbsim.core.layout import NO_FAULT, NO_FREE_BLOCKS, NOBODY
from cbsim.core.tiers import store, store_evicted


def blocks_for(self: Any, num_tokens: int) -> int:
    """Blocks that `num_tokens` tokens fill, the last one perhaps in part."""
    return -(-num_tokens // self.own.block_size)


def num_known_tokens(request: Any) -> int:
    """Prompt and generated tokens whose values are known."""
    return request.num_prompt_tokens + request.num_generated_tokens


@apart
def fail(self: Any, code: int, request: Any, num_asked: int, num_allowed: int, budget: int) -> None:
    """A rule does what it must not: whoever runs the core raises the first such thing after `decide`."""
    own = self.own
    if own.fault == NO_FAULT:
        own.fault, own.fault_request = code, request.index
        own.fault_tokens, own.fault_limit, own.fault_budget = num_asked, num_allowed, budget


def row_of(self: Any, request: Any, group: int) -> int:
    """The row of `Replica.tables` and `Replica.shares` with a request's blocks in a group."""
    return int(request.slot * self.own.num_groups + group)


def num_at_most(self: Any, num_tokens: int) -> int:
    """Most blocks that a request of `num_tokens` tokens holds at a time, in all groups."""
    total = 0
    for number in range(self.own.num_groups):
        group = self.groups[number]
        num_needed = -(-num_tokens // group.block_size)
        total += min(num_needed, group.most_blocks) if group.window else num_needed
    return int(total)


def num_missing(self: Any, request: Any, num_tokens: int, num_cached: int = 0, is_whole: bool = False) -> int:
    """Blocks that a request lacks to hold KV of its first `num_tokens` tokens, in all groups.

    If it holds none, its first `num_cached` tokens are taken to be cached. With `is_whole` a group with a
    window counts no more blocks than it can ever need.
    """
    own, num_blocks = self.own, request.num_blocks
    if own.has_groups:
        return num_missing_by_group(self, request, num_tokens, num_cached, is_whole)
    if own.has_identities and request.slot == NOBODY:
        num_blocks = num_cached // own.block_size
    return max(0, blocks_for(self, num_tokens) - num_blocks)


@apart
def num_missing_by_group(self: Any, request: Any, num_tokens: int, num_cached: int, is_whole: bool) -> int:
    """See `num_missing`, where blocks stand in groups."""
    own, total = self.own, 0
    for number in range(own.num_groups):
        group = self.groups[number]
        num_needed = -(-num_tokens // group.block_size)
        if is_whole and group.window:
            num_needed = min(num_needed, group.most_blocks)
        if request.slot == NOBODY:
            start = max(request.num_computed_tokens, num_cached)
            num_places = max(num_behind(group, start), num_cached // group.block_size)
        else:
            num_places = self.shares[row_of(self, request, number)].num_places
        total += max(0, num_needed - num_places)
    return int(total)


def grow(self: Any, request: Any, num_tokens: int) -> None:
    """Give a request the blocks that it lacks for its first `num_tokens` tokens; they must be free."""
    own = self.own
    if own.has_identities:
        take_slot(self, request)
    missing = num_missing(self, request, num_tokens)
    if missing > own.num_free:
        fail(self, NO_FREE_BLOCKS, request, missing, own.num_free, 0)
        return
    if not own.has_identities:
        request.num_blocks += missing
        own.num_free -= missing
        return
    for number in range(own.num_groups):
        num_needed = -(-num_tokens // self.groups[number].block_size)
        take_blocks(self, request, number, num_needed - self.shares[row_of(self, request, number)].num_places)


def allocate(self: Any, request: Any, num_blocks: int) -> None:
    """Give a request further blocks of the first group of layers, which must be free."""
    own = self.own
    if num_blocks > own.num_free:
        fail(self, NO_FREE_BLOCKS, request, num_blocks, own.num_free, 0)
    elif own.has_identities:
        take_slot(self, request)
        take_blocks(self, request, 0, num_blocks)
    else:
        request.num_blocks += num_blocks
        own.num_free -= num_blocks


def release(self: Any, request: Any) -> None:
    """Take back a request's share in all its blocks."""
    if self.own.has_identities:
        give_back_blocks(self, request)
    else:
        self.own.num_free += request.num_blocks
    request.num_blocks = 0


@apart
def take_blocks(self: Any, request: Any, group: int, num_blocks: int) -> None:
    """Give a request blocks from the front of the free queue; what they held is forgotten."""
    blocks, end = self.blocks, self.own.num_blocks
    row = row_of(self, request, group)
    table, share = self.tables[row], self.shares[row]
    for _ in range(num_blocks):
        block = blocks[end].next_free
        unlink(blocks, block)
        store_evicted(self, blocks[block].key)
        forget(self, block)
        blocks[block].num_holders = 1
        table[share.num_places] = block
        share.num_places += 1
        request.num_blocks += 1
        self.own.num_free -= 1


@apart
def take_slot(self: Any, request: Any) -> None:
    """Give a request rows of `Replica.tables` for its block numbers, unless it has them."""
    if request.slot != NOBODY:
        return
    request.slot = self.own.first_free_slot
    self.own.first_free_slot = self.tables[row_of(self, request, 0)][0]
    for number in range(self.own.num_groups):
        share = self.shares[row_of(self, request, number)]
        share.num_places = share.num_behind = share.num_published = share.num_stored = share.publishes_at = 0


@apart
def give_back_blocks(self: Any, request: Any) -> None:
    """Take back a request's blocks, group by group, the last one first."""
    own = self.own
    if request.slot == NOBODY:
        return
    for number in range(own.num_groups):
        row = row_of(self, request, number)
        for place in range(self.shares[row].num_places - 1, -1, -1):
            give_back(self, request, row, place)
    self.tables[row_of(self, request, 0)][0] = own.first_free_slot
    own.first_free_slot = request.slot
    request.slot = NOBODY


@apart
def give_back(self: Any, request: Any, row: int, place: int) -> None:
    """Take back a request's share in a block, leaving its place empty; a block nobody holds is free."""
    blocks, own, end = self.blocks, self.own, self.own.num_blocks
    number = self.tables[row][place]
    if number == NOBODY:
        return
    self.tables[row][place] = NOBODY
    request.num_blocks -= 1
    block = blocks[number]
    block.num_holders -= 1
    if block.num_holders:
        own.num_shared_blocks -= 1
        return
    own.num_free += 1
    if block.key != NOBODY:
        own.num_cached_free += 1
        link_after(blocks, blocks[end].last_free, number)
    elif own.unknown_first:
        link_after(blocks, end, number)
    else:
        link_after(blocks, blocks[end].last_free, number)


@apart
def give_back_behind(self: Any, request: Any) -> None:
    """Take back the blocks behind the window of what a request has computed, not counting steps under way."""
    if request.slot == NOBODY:
        return
    for number in range(self.own.num_groups):
        group = self.groups[number]
        if group.window:
            row = row_of(self, request, number)
            share = self.shares[row]
            end = num_behind(group, request.num_computed_tokens - request.num_launched_tokens)
            for place in range(end - 1, share.num_behind - 1, -1):
                give_back(self, request, row, place)
            share.num_behind = max(share.num_behind, end)


@apart
def num_freed_by(self: Any, num_candidates: int) -> int:
    """Blocks that would be free if the first `num_candidates` of the candidates gave up all of theirs."""
    num_freed = 0
    for number in range(num_candidates):
        request = self.requests[self.candidates[number]]
        if self.own.has_identities:
            num_freed += mark(self, request, 1)
        else:
            num_freed += request.num_blocks
    if self.own.has_identities:
        for number in range(num_candidates):
            mark(self, self.requests[self.candidates[number]], -1)
    return num_freed


def mark(self: Any, request: Any, change: int) -> int:
    """Count a request's shares in blocks up or down; how many of these are now counted as often as held."""
    num_whole = 0
    if request.slot == NOBODY:
        return 0
    for group in range(self.own.num_groups):
        row = row_of(self, request, group)
        for place in range(self.shares[row].num_places):
            number = self.tables[row][place]
            if number != NOBODY:
                block = self.blocks[number]
                block.num_seen += change
                num_whole += block.num_seen == block.num_holders
    return num_whole


# Prefix caching


@apart
def find_prefix(self: Any, request: Any) -> tuple[int, int]:
    """How many leading tokens of a request are cached, and how many blocks with them nobody holds.

    At least one known token is left to compute. Of several copies of a block the one that became known first
    is taken. A group with a window needs only the blocks that the next token attends to. The blocks' numbers
    stand in the last slot of `Replica.tables`, `NOBODY` for those behind the window.
    """
    own = self.own
    if not own.prefix_caching:
        return 0, 0
    most = (num_known_tokens(request) - 1) // own.hit_size * own.hit_size
    length = num_cached_in_full(self, request, most)
    num_before = NOBODY
    while num_before != length:
        num_before = length
        for number in range(own.num_groups):
            if self.groups[number].window and self.groups[number].is_first_of_kind:
                length = num_cached_in_window(self, request, number, length)
    if own.drops_last_hit:
        length = max(0, length - own.hit_size)
    if request.num_junction_tokens <= length:
        request.num_junction_tokens = 0
    num_free = 0
    for number in range(own.num_groups):
        group, found = self.groups[number], self.tables[row_found(self, number)]
        behind, link = num_behind(group, length), request.first_link
        for place in range(length // group.block_size):
            if group.window:
                link = link_of(self, request, link, number, place)
                found[place] = (
                    first_copy(self, key_at(self, link, number, place)) if place >= behind else NOBODY
                )
            if found[place] != NOBODY:
                num_free += self.blocks[found[place]].num_holders == 0
    return length, num_free


def row_found(self: Any, number: int) -> int:
    """The row of `Replica.tables` for the blocks that a lookup finds in a group."""
    return len(self.tables) - int(self.own.num_groups) + number


def first_copy(self: Any, key: int) -> int:
    """The block that became known first of those that hold what `key` names, `NOBODY` if none does."""
    entry = self.keys[place_of_key(self.keys, key)]
    return int(entry.first) if entry.key != NOBODY else NOBODY


def num_cached_in_full(self: Any, request: Any, most: int) -> int:
    """Leading tokens, at most `most`, whose blocks all groups without a window know."""
    own, length = self.own, most
    request.num_junction_tokens = 0
    for number in range(own.num_groups):
        group, found = self.groups[number], self.tables[row_found(self, number)]
        if group.window == 0:
            link, place = request.first_link, 0
            while place < length // group.block_size:
                link = link_of(self, request, link, number, place)
                found[place] = first_copy(self, key_at(self, link, number, place))
                if found[place] == NOBODY:
                    length = place * group.block_size
                place += 1
            length = length // own.hit_size * own.hit_size
            request.num_junction_tokens = length
    return int(length)


@apart
def num_cached_in_window(self: Any, request: Any, first: int, most: int) -> int:
    """Leading tokens, at most `most`, behind whose end the groups like `first` know what the window covers.

    The last place where they know enough blocks in a row counts; if there is none, the blocks from the first
    one on.
    """
    own, group = self.own, self.groups[first]
    num_found = end = 0
    for place in range(most // group.block_size - 1, -1, -1):
        if num_found >= group.tail:
            break
        if num_found == 0:
            end = (place + 1) * group.block_size
            if end % own.hit_size:
                continue
        num_found = num_found + 1 if is_known_in_window(self, request, first, place) else 0
    if group.tail == 0:
        return most
    return int(end) if num_found else 0


def is_known_in_window(self: Any, request: Any, first: int, place: int) -> bool:
    """Whether all groups with the window of group `first` know a block of a request."""
    group = self.groups[first]
    for number in range(first, self.own.num_groups):
        other = self.groups[number]
        if other.window == group.window and other.block_size == group.block_size:
            link = link_of(self, request, request.first_link, number, place)
            if first_copy(self, key_at(self, link, number, place)) == NOBODY:
                return False
    return True


@apart
def adopt(self: Any, request: Any, num_cached: int) -> None:
    """Let a request, which holds nothing yet, share the blocks found, which are then free no more."""
    own = self.own
    if num_cached == 0:
        return
    take_slot(self, request)
    for number in range(own.num_groups):
        row = row_of(self, request, number)
        group, share = self.groups[number], self.shares[row]
        table, found = self.tables[row], self.tables[row_found(self, number)]
        share.num_places = share.num_published = share.num_stored = num_cached // group.block_size
        share.num_behind = num_behind(group, num_cached)
        for place in range(share.num_places):
            block = table[place] = found[place]
            if block != NOBODY:
                request.num_blocks += 1
                if self.blocks[block].num_holders == 0:
                    unlink(self.blocks, block)
                    own.num_free -= 1
                    own.num_cached_free -= 1
                else:
                    own.num_shared_blocks += 1
                self.blocks[block].num_holders += 1


def num_shared_of(self: Any, num_tokens: int) -> int:
    """How many of `num_tokens` tokens, whose KV several requests hold, one of them finds read by another.

    Estimated by blocks: those held more than once, counted without their first holder, over all that
    requests hold.
    """
    own = self.own
    if own.num_shared_blocks == 0:
        return 0
    num_held = own.num_blocks - own.num_free + own.num_shared_blocks
    return int(num_tokens * own.num_shared_blocks // num_held)


@apart
def leave_behind(self: Any, request: Any, num_tokens: int) -> None:
    """Leave the places empty that lie behind the window of a request that has `num_tokens` from elsewhere."""
    if not self.own.has_identities:
        return
    take_slot(self, request)
    for number in range(self.own.num_groups):
        row = row_of(self, request, number)
        share, end = self.shares[row], num_behind(self.groups[number], num_tokens)
        for place in range(share.num_places, end):
            self.tables[row][place] = NOBODY
        share.num_places = max(share.num_places, end)
        share.num_behind = max(share.num_behind, end)


def publish(self: Any, request: Any, num_tokens: int) -> None:
    """Make the blocks that the request's first `num_tokens` known tokens fill known to lookups.

    Blocks are not merged: equal content may be known in several copies.
    """
    own = self.own
    if own.prefix_caching and request.slot != NOBODY:
        num_tokens = min(num_tokens, num_known_tokens(request) - own.looks_ahead)
        if num_tokens >= self.shares[row_of(self, request, 0)].publishes_at:
            publish_blocks(self, request, num_tokens)


@apart
def publish_blocks(self: Any, request: Any, num_tokens: int) -> None:
    """See `publish`; the first `num_tokens` tokens, and those that tell the last block, are known."""
    own = self.own
    for number in range(own.num_groups):
        row = row_of(self, request, number)
        share = self.shares[row]
        first, end = (
            share.num_published,
            num_tokens // own.hit_size * own.hit_size // self.groups[number].block_size,
        )
        link = request.first_link
        for place in range(first, end):
            link = link_of(self, request, link, number, place)
            block = self.tables[row][place]
            if block != NOBODY and is_kept(self, request, number, place):
                hold(self.blocks, self.keys, block, key_at(self, link, number, place))
        share.num_published = max(first, end)
    share = self.shares[row_of(self, request, 0)]
    share.publishes_at = (num_tokens // own.hit_size + 1) * own.hit_size


def store_computed(self: Any, request: Any) -> None:
    """Have what a request has computed, as far as lookups know it, written to the first tier."""
    if self.own.num_tiers and self.config.stores_through and request.slot != NOBODY:
        store_blocks(self, request, request.num_computed_tokens - request.num_launched_tokens)


@apart
def store_blocks(self: Any, request: Any, num_tokens: int) -> None:
    """See `store_computed`; the first `num_tokens` tokens are computed."""
    for number in range(self.own.num_groups):
        row = row_of(self, request, number)
        share = self.shares[row]
        end = min(share.num_published, num_tokens // self.groups[number].block_size)
        for place in range(share.num_stored, end):
            block = self.tables[row][place]
            if block != NOBODY and self.blocks[block].key != NOBODY:
                store(self, self.blocks[block].key)
        share.num_stored = max(share.num_stored, end)


def is_kept(self: Any, request: Any, number: int, place: int) -> bool:
    """Whether a block becomes known to lookups, as vLLM's `prefix_cache_retention_interval` has it.

    Groups with a window keep only what a lookup can need: the blocks before the last full one of the prompt,
    those before a junction, and those before every interval.
    """
    group, size = self.groups[number], self.own.hit_size
    if group.window == 0:
        return True
    replay = (request.num_prompt_tokens - 1) // size * size // group.block_size
    junction = request.num_junction_tokens // size * size // group.block_size
    if replay - group.tail <= place < replay or junction - group.tail <= place < junction:
        return True
    return bool(group.interval and group.interval - place % group.interval <= group.tail)


@apart
def withdraw(self: Any, request: Any, num_tokens: int) -> None:
    """Undo `publish` beyond the first `num_tokens`: a step that was to compute them will not run."""
    own = self.own
    if not own.prefix_caching or request.slot == NOBODY:
        return
    for number in range(own.num_groups):
        row = row_of(self, request, number)
        share = self.shares[row]
        num_kept = num_tokens // own.hit_size * own.hit_size // self.groups[number].block_size
        for place in range(num_kept, share.num_published):
            if self.tables[row][place] != NOBODY:
                forget(self, self.tables[row][place])
        share.num_published = min(share.num_published, num_kept)
        share.publishes_at = 0


@apart
def forget(self: Any, number: int) -> None:
    """What a block holds, if anything, is lost."""
    block = self.blocks[number]
    if block.key == NOBODY:
        return
    if block.num_holders == 0:
        self.own.num_cached_free -= 1
    empty(self.blocks, self.keys, number)
