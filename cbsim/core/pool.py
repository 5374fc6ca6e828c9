"""The KV cache: blocks counted, and where it matters known by number and by what they hold.

vLLM's block pool (`vllm/v1/core/block_pool.py`): blocks without content are used before any cached one, then
cached blocks in order of release, a request's later blocks before its earlier ones. With `unknown_first` off
(vLLM before 0.33) every released block goes to the tail of the free queue.
"""

from __future__ import annotations

from typing import Any

from cbsim.core.layout import NO_FREE_BLOCKS, NOBODY

NODE_FACTOR = 4294967296
"""2^32: a key holds a node and, below it, a length."""


def blocks_for(self: Any, num_tokens: int) -> int:
    """Blocks that so many tokens fill, the last one perhaps in part."""
    return -(-num_tokens // self.own.block_size)


def num_known_tokens(request: Any) -> int:
    """Prompt and generated tokens whose values are known."""
    return request.num_prompt_tokens + request.num_generated_tokens


def allocate(self: Any, request: Any, num_blocks: int) -> None:
    """Give a request further blocks, which must be free."""
    own = self.own
    if num_blocks > own.num_free:
        own.fault, own.fault_request = NO_FREE_BLOCKS, request.index
        own.fault_tokens, own.fault_limit = num_blocks, own.num_free
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
    """From the front of the free queue; what they held is forgotten."""
    pool, own = self.pool, self.own
    take_slot(self, request)
    end = own.num_blocks
    table = pool.tables[request.slot]
    for place in range(request.num_blocks, request.num_blocks + num_blocks):
        block = pool.next_free[end]
        unlink(pool, block)
        forget(self, block)
        pool.num_holders[block] = 1
        table[place] = block


def take_slot(self: Any, request: Any) -> None:
    """A row for the request's block numbers."""
    if request.slot == NOBODY:
        request.slot = self.own.first_free_slot
        self.own.first_free_slot = self.pool.next_slot[request.slot]


def give_back_blocks(self: Any, request: Any) -> None:
    """From the last block to the first; those that nobody else holds become free."""
    pool, own, end = self.pool, self.own, self.own.num_blocks
    if request.slot == NOBODY:
        return
    table = pool.tables[request.slot]
    for place in range(request.num_blocks - 1, -1, -1):
        block = table[place]
        pool.num_holders[block] -= 1
        if pool.num_holders[block] == 0:
            own.num_free += 1
            if pool.key_of[block] != NOBODY:
                own.num_cached_free += 1
                link_after(pool, pool.last_free[end], block)
            elif own.unknown_first:
                link_after(pool, end, block)
            else:
                link_after(pool, pool.last_free[end], block)
    pool.next_slot[request.slot] = own.first_free_slot
    own.first_free_slot = request.slot
    request.slot = NOBODY
    request.num_published_blocks = 0


def num_freed_by(self: Any, num_candidates: int) -> int:
    """Blocks that would be free if the first `num_candidates` of the candidates gave up all of theirs."""
    pool, num_freed = self.pool, 0
    for number in range(num_candidates):
        request = self.requests[self.candidates[number]]
        if not self.own.has_identities:
            num_freed += request.num_blocks
            continue
        for place in range(request.num_blocks):
            block = pool.tables[request.slot][place]
            pool.num_seen[block] += 1
            num_freed += pool.num_seen[block] == pool.num_holders[block]
    if self.own.has_identities:
        for number in range(num_candidates):
            request = self.requests[self.candidates[number]]
            for place in range(request.num_blocks):
                pool.num_seen[pool.tables[request.slot][place]] = 0
    return num_freed


# Prefix caching


def find_prefix(self: Any, request: Any) -> tuple[int, int]:
    """`(blocks, those of them that nobody holds)`: the longest leading run of blocks whose content is there.

    Never the request's last token. Of several copies, the one that became known first. The blocks' numbers
    stand in `Pool.found`.
    """
    pool, num_free, num_found = self.pool, 0, 0
    if not self.own.prefix_caching:
        return 0, 0
    link = request.first_link
    for place in range((num_known_tokens(request) - 1) // self.own.block_size):
        link = link_of(self, request, link, place)
        at = place_of_key(pool.keys, key_at(self, link, place))
        if pool.keys[at] == NOBODY:
            break
        block = pool.first_of[at]
        pool.found[place] = block
        num_free += pool.num_holders[block] == 0
        num_found += 1
    return num_found, num_free


def adopt(self: Any, request: Any, num_found: int) -> None:
    """Let a request, which holds nothing yet, share the blocks found, which are then free no more."""
    pool, own = self.pool, self.own
    if num_found == 0:
        return
    take_slot(self, request)
    table = pool.tables[request.slot]
    for place in range(num_found):
        block = pool.found[place]
        if pool.num_holders[block] == 0:
            unlink(pool, block)
            own.num_free -= 1
            own.num_cached_free -= 1
        pool.num_holders[block] += 1
        table[place] = block
    request.num_blocks = num_found
    request.num_published_blocks = num_found


def publish(self: Any, request: Any, num_tokens: int) -> None:
    """Make the blocks that the request's first `num_tokens` tokens fill known to lookups.

    Blocks are not merged: equal content may be known in several copies.
    """
    if not self.own.prefix_caching:
        return
    pool, end = self.pool, num_tokens // self.own.block_size
    first = request.num_published_blocks
    if first >= end:
        return
    link = request.first_link
    for place in range(first, end):
        link = link_of(self, request, link, place)
        block, key = pool.tables[request.slot][place], key_at(self, link, place)
        pool.key_of[block] = key
        at = place_of_key(pool.keys, key)
        pool.next_copy[block] = NOBODY
        if pool.keys[at] == NOBODY:
            pool.keys[at] = key
            pool.first_of[at] = block
            pool.last_copy[block] = NOBODY
        else:
            pool.next_copy[pool.last_of[at]] = block
            pool.last_copy[block] = pool.last_of[at]
        pool.last_of[at] = block
    request.num_published_blocks = end


def withdraw(self: Any, request: Any, num_tokens: int) -> None:
    """Undo `publish` beyond the first `num_tokens`: a step that was to compute them will not run."""
    if not self.own.prefix_caching:
        return
    num_kept = num_tokens // self.own.block_size
    for place in range(num_kept, request.num_published_blocks):
        forget(self, self.pool.tables[request.slot][place])
    request.num_published_blocks = min(request.num_published_blocks, num_kept)


def forget(self: Any, block: int) -> None:
    """What a block holds is lost."""
    pool = self.pool
    key = pool.key_of[block]
    if key == NOBODY:
        return
    pool.key_of[block] = NOBODY
    if pool.num_holders[block] == 0:
        self.own.num_cached_free -= 1
    at = place_of_key(pool.keys, key)
    before, after = pool.last_copy[block], pool.next_copy[block]
    if before != NOBODY:
        pool.next_copy[before] = after
    else:
        pool.first_of[at] = after
    if after != NOBODY:
        pool.last_copy[after] = before
    else:
        pool.last_of[at] = before
    if pool.first_of[at] == NOBODY:
        remove_key(pool, at)


def link_of(self: Any, request: Any, link: int, place: int) -> int:
    """The row of the segment that holds a block's last token, from an earlier block's row on."""
    num_tokens = (place + 1) * self.own.block_size
    while link + 1 < request.end_link and self.pool.starts[link + 1] < num_tokens:
        link += 1
    return link


def key_at(self: Any, link: int, place: int) -> int:
    """A name for all tokens up to a block's end, equal for equal tokens, and only for those.

    A sequence is a chain of segments, each used from its offset 0: it is told by the chain of whole segments
    before the last one (a node) and its length in that one.
    """
    num_tokens = (place + 1) * self.own.block_size
    return self.pool.nodes[link] * NODE_FACTOR + (num_tokens - self.pool.starts[link])


# A ring of free blocks, and a hash table with open addressing


def unlink(pool: Any, block: int) -> None:
    """Take a block out of the free queue."""
    pool.next_free[pool.last_free[block]] = pool.next_free[block]
    pool.last_free[pool.next_free[block]] = pool.last_free[block]


def link_after(pool: Any, before: int, block: int) -> None:
    """Put a block into the free queue behind another, or behind the head."""
    after = pool.next_free[before]
    pool.next_free[before], pool.last_free[block] = block, before
    pool.next_free[block], pool.last_free[after] = after, block


def home_of(keys: Any, key: int) -> int:
    """Where a key belongs; the table's length is a power of two."""
    mixed = (key % NODE_FACTOR) * 2654435761 + (key // NODE_FACTOR) * 40503
    return (mixed // 65536) % len(keys)


def place_of_key(keys: Any, key: int) -> int:
    """Where a key is, or would be."""
    at = home_of(keys, key)
    while keys[at] != NOBODY and keys[at] != key:
        at = (at + 1) % len(keys)
    return at


def remove_key(pool: Any, at: int) -> None:
    """Remove a key; those behind it that were pushed past their home move up."""
    keys, size = pool.keys, len(pool.keys)
    keys[at] = NOBODY
    later = (at + 1) % size
    while keys[later] != NOBODY:
        if (later - home_of(keys, keys[later])) % size >= (later - at) % size:
            keys[at], pool.first_of[at], pool.last_of[at] = (
                keys[later],
                pool.first_of[later],
                pool.last_of[later],
            )
            keys[later] = NOBODY
            at = later
        later = (later + 1) % size
