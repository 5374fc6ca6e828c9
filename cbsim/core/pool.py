"""The KV cache: blocks counted, and where it matters known by number and by what they hold.

vLLM's block pool (`vllm/v1/core/block_pool.py`): blocks without content are used before any cached one, then
cached blocks in order of release, a request's later blocks before its earlier ones. With `unknown_first` off
(vLLM before 0.33) every released block goes to the tail of the free queue.
"""

from __future__ import annotations

from typing import Any

from cbsim.core.layout import NO_FAULT, NO_FREE_BLOCKS, NOBODY

NODE_FACTOR = 4294967296
"""2^32: a key holds a node and, below it, a length."""


def blocks_for(self: Any, num_tokens: int) -> int:
    """Blocks that `num_tokens` tokens fill, the last one perhaps in part."""
    return -(-num_tokens // self.own.block_size)


def num_known_tokens(request: Any) -> int:
    """Prompt and generated tokens whose values are known."""
    return request.num_prompt_tokens + request.num_generated_tokens


def fail(self: Any, code: int, request: Any, num_asked: int, num_allowed: int, budget: int) -> None:
    """A rule does what it must not: whoever runs the core raises the first such thing after `decide`."""
    own = self.own
    if own.fault == NO_FAULT:
        own.fault, own.fault_request = code, request.index
        own.fault_tokens, own.fault_limit, own.fault_budget = num_asked, num_allowed, budget


def allocate(self: Any, request: Any, num_blocks: int) -> None:
    """Give a request further blocks, which must be free."""
    own = self.own
    if num_blocks > own.num_free:
        fail(self, NO_FREE_BLOCKS, request, num_blocks, own.num_free, 0)
        return
    if own.has_identities:
        take_blocks(self, request, num_blocks)
    own.num_free -= num_blocks
    request.num_blocks += num_blocks


def release(self: Any, request: Any) -> None:
    """Take back a request's share in all its blocks."""
    if self.own.has_identities:
        give_back_blocks(self, request)
    else:
        self.own.num_free += request.num_blocks
    request.num_blocks = 0


def take_blocks(self: Any, request: Any, num_blocks: int) -> None:
    """Give a request blocks from the front of the free queue; what they held is forgotten."""
    blocks, end = self.blocks, self.own.num_blocks
    take_slot(self, request)
    table = self.tables[request.slot]
    for place in range(request.num_blocks, request.num_blocks + num_blocks):
        block = blocks[end].next_free
        unlink(blocks, block)
        forget(self, block)
        blocks[block].num_holders = 1
        table[place] = block


def take_slot(self: Any, request: Any) -> None:
    """Give a request a row of `Replica.tables` for its block numbers, unless it has one."""
    if request.slot == NOBODY:
        request.slot = self.own.first_free_slot
        self.own.first_free_slot = self.tables[request.slot][0]


def give_back_blocks(self: Any, request: Any) -> None:
    """Take back a request's blocks, the last one first; those that nobody else holds become free."""
    blocks, own, end = self.blocks, self.own, self.own.num_blocks
    if request.slot == NOBODY:
        return
    table = self.tables[request.slot]
    for place in range(request.num_blocks - 1, -1, -1):
        number = table[place]
        block = blocks[number]
        block.num_holders -= 1
        if block.num_holders == 0:
            own.num_free += 1
            if block.key != NOBODY:
                own.num_cached_free += 1
                link_after(blocks, blocks[end].last_free, number)
            elif own.unknown_first:
                link_after(blocks, end, number)
            else:
                link_after(blocks, blocks[end].last_free, number)
    table[0] = own.first_free_slot
    own.first_free_slot = request.slot
    request.slot = NOBODY
    request.num_published_blocks = 0


def num_freed_by(self: Any, num_candidates: int) -> int:
    """Blocks that would be free if the first `num_candidates` of the candidates gave up all of theirs."""
    blocks, num_freed = self.blocks, 0
    for number in range(num_candidates):
        request = self.requests[self.candidates[number]]
        if not self.own.has_identities:
            num_freed += request.num_blocks
            continue
        for place in range(request.num_blocks):
            block = blocks[self.tables[request.slot][place]]
            block.num_seen += 1
            num_freed += block.num_seen == block.num_holders
    if self.own.has_identities:
        for number in range(num_candidates):
            request = self.requests[self.candidates[number]]
            for place in range(request.num_blocks):
                blocks[self.tables[request.slot][place]].num_seen = 0
    return num_freed


# Prefix caching


def find_prefix(self: Any, request: Any) -> tuple[int, int]:
    """The longest run of leading blocks of a request that are cached: `(how many, how many nobody holds)`.

    A block with the request's last known token is never among them, so that one token is left to compute. Of
    several copies the one that became known first is taken. The blocks' numbers stand in the last row of
    `Replica.tables`.
    """
    keys, num_free, num_found = self.keys, 0, 0
    if not self.own.prefix_caching:
        return 0, 0
    found = self.tables[len(self.tables) - 1]
    link = request.first_link
    for place in range((num_known_tokens(request) - 1) // self.own.block_size):
        link = link_of(self, request, link, place)
        at = place_of_key(keys, key_at(self, link, place))
        if keys[at].key == NOBODY:
            break
        block = keys[at].first
        found[place] = block
        num_free += self.blocks[block].num_holders == 0
        num_found += 1
    return num_found, num_free


def adopt(self: Any, request: Any, num_found: int) -> None:
    """Let a request, which holds nothing yet, share the blocks found, which are then free no more."""
    own = self.own
    if num_found == 0:
        return
    take_slot(self, request)
    table, found = self.tables[request.slot], self.tables[len(self.tables) - 1]
    for place in range(num_found):
        number = found[place]
        block = self.blocks[number]
        if block.num_holders == 0:
            unlink(self.blocks, number)
            own.num_free -= 1
            own.num_cached_free -= 1
        block.num_holders += 1
        table[place] = number
    request.num_blocks = num_found
    request.num_published_blocks = num_found


def publish(self: Any, request: Any, num_tokens: int) -> None:
    """Make the blocks that the request's first `num_tokens` tokens fill known to lookups.

    Blocks are not merged: equal content may be known in several copies.
    """
    if not self.own.prefix_caching:
        return
    blocks, keys, end = self.blocks, self.keys, num_tokens // self.own.block_size
    first = request.num_published_blocks
    if first >= end:
        return
    link = request.first_link
    for place in range(first, end):
        link = link_of(self, request, link, place)
        number, key = self.tables[request.slot][place], key_at(self, link, place)
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
    request.num_published_blocks = end


def withdraw(self: Any, request: Any, num_tokens: int) -> None:
    """Undo `publish` beyond the first `num_tokens`: a step that was to compute them will not run."""
    if not self.own.prefix_caching:
        return
    num_kept = num_tokens // self.own.block_size
    for place in range(num_kept, request.num_published_blocks):
        forget(self, self.tables[request.slot][place])
    request.num_published_blocks = min(request.num_published_blocks, num_kept)


def forget(self: Any, number: int) -> None:
    """What a block holds is lost."""
    blocks, keys = self.blocks, self.keys
    block = blocks[number]
    if block.key == NOBODY:
        return
    at = place_of_key(keys, block.key)
    block.key = NOBODY
    if block.num_holders == 0:
        self.own.num_cached_free -= 1
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


def link_of(self: Any, request: Any, link: int, place: int) -> int:
    """The row of the segment that holds a block's last token, from an earlier block's row on."""
    num_tokens = (place + 1) * self.own.block_size
    while link + 1 < request.end_link and self.segments[link + 1].start < num_tokens:
        link += 1
    return link


def key_at(self: Any, link: int, place: int) -> int:
    """A name for all tokens up to a block's end, equal for equal tokens, and only for those.

    A sequence is a chain of segments, each used from its offset 0: it is told by the chain of whole segments
    before the last one (a node) and its length in that one.
    """
    segment = self.segments[link]
    return segment.node * NODE_FACTOR + ((place + 1) * self.own.block_size - segment.start)


# A ring of free blocks, and a hash table with open addressing


def unlink(blocks: Any, number: int) -> None:
    """Take a block out of the free queue."""
    block = blocks[number]
    blocks[block.last_free].next_free = block.next_free
    blocks[block.next_free].last_free = block.last_free


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
