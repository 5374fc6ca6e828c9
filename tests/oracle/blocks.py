"""The pool of blocks: who holds them, which are free, what they are known to hold (8, 9, 21 to 24, H)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.oracle.request import Request
    from tests.oracle.settings import Settings

Token = tuple[str, int]
"""A segment's name and a place in it: equal tokens have both equal."""
Content = tuple[int, tuple[Token, ...]]
"""A group, and all tokens from the first of a request to the last of the block."""
Places = list[list["Block | None"]]
"""For each group, a request's blocks from its first token on."""


@dataclass(eq=False)
class Block:
    """As many slots as its group's block size, and what is in them, once that is known (21)."""

    content: Content | None = None


class Pool:
    """Blocks of all groups of layers, and the requests that may hold them."""

    def __init__(self, settings: Settings, requests: list[Request]) -> None:
        self.settings = settings
        self.requests = requests
        self.sizes = [group.block_size or settings.block_size for group in settings.kv_groups]
        self.windows = [g.window if g.kind == "sliding" else None for g in settings.kv_groups]
        self.unit = math.lcm(*self.sizes)
        """`m`: hits and known tokens are multiples of it (H9)."""
        self.blocks = [Block() for _ in range(settings.num_gpu_blocks - 1)]
        self.free = list(self.blocks)
        """Front first: the order in which they will be taken."""
        self.copies: dict[Content, list[Block]] = {}
        """Blocks of equal content, in the order in which they became known."""

    def num_holders(self, block: Block) -> int:
        return sum(block in places for request in self.requests for places in request.blocks)

    def num_used(self) -> int:
        held = {id(b) for request in self.requests for places in request.blocks for b in places if b}
        assert len(self.free) == len({id(b) for b in self.free}) == len(self.blocks) - len(held)
        assert not held & {id(block) for block in self.free}
        return len(held)

    def num_passed(self, group: int, num_tokens: int) -> int:
        """`skip`: blocks that so many computed tokens leave behind the window (H2)."""
        window = self.windows[group]
        return 0 if window is None else max(0, num_tokens - window + 1) // self.sizes[group]

    def num_kept(self, group: int) -> int:
        """`c`: known blocks that a window needs (H5, H6)."""
        return math.ceil(((self.windows[group] or 1) - 1) / self.sizes[group])

    def most_of_prompt(self, group: int) -> float:
        """The most blocks of a group that the test for a whole prompt counts (H4)."""
        window = self.windows[group]
        if window is None:
            return math.inf
        reach = window - 1 + self.settings.num_calls * self.settings.max_num_batched_tokens
        return math.ceil(min(reach, self.settings.max_model_len) / self.sizes[group]) + 1

    def missing(self, request: Request, num_tokens: int) -> int:
        """Blocks that it lacks to hold so many tokens; places left empty count as held (H3)."""
        held = zip(self.sizes, request.blocks, strict=True)
        return sum(max(0, math.ceil(num_tokens / size) - len(places)) for size, places in held)

    def needed(self, hits: Places, start: int, num_tokens: int, *, is_whole: bool = False) -> int:
        """Free blocks that a newcomer with these hits needs to hold so many tokens (18, H3, H4)."""
        total = 0
        for group, size in enumerate(self.sizes):
            num_blocks = math.ceil(num_tokens / size)
            if is_whole:
                num_blocks = int(min(num_blocks, self.most_of_prompt(group)))
            passed = self.num_passed(group, start)
            total += max(0, num_blocks - max(passed, len(hits[group])))
            total += sum(self.num_holders(b) == 0 for b in hits[group][passed:] if b is not None)
        return total

    def hold_hits(self, request: Request, hits: Places, start: int) -> None:
        """Places behind the window start empty (H3)."""
        for group, found in enumerate(hits):
            passed = self.num_passed(group, start)
            empty: list[Block | None] = [None] * passed
            hits[group] = empty + found[passed:]
        request.blocks = hits
        self.free = [block for block in self.free if not any(block in found for found in hits)]

    def take(self, request: Request, num_tokens: int) -> None:
        """New blocks from the front of the free queue, which forget what they held (8, 24)."""
        for size, places in zip(self.sizes, request.blocks, strict=True):
            while len(places) < math.ceil(num_tokens / size):
                block = self.free.pop(0)
                self.forget(block)
                places.append(block)

    def forget(self, block: Block | None) -> None:
        if block is not None and block.content is not None:
            self.copies[block.content].remove(block)
            block.content = None

    def give_back(self, block: Block | None) -> None:
        """One that a request has just let go of (24)."""
        if block is not None and self.num_holders(block) == 0:
            if block.content is None and self.settings.version == "0.33":
                self.free.insert(0, block)
            else:
                self.free.append(block)

    def release(self, request: Request) -> None:
        """All that it holds, group by group, each from the last to the first (24, H8)."""
        for places in request.blocks:
            while places:
                self.give_back(places.pop())

    def release_passed(self, request: Request, num_tokens: int) -> None:
        """What so many computed tokens leave behind the window (H2)."""
        for group, places in enumerate(request.blocks):
            for place in reversed(range(min(len(places), self.num_passed(group, num_tokens)))):
                block, places[place] = places[place], None
                self.give_back(block)

    def content(self, request: Request, group: int, place: int) -> Content | None:
        """What a block at this place holds, if all that its key covers is known (S7)."""
        end = (place + 1) * self.sizes[group] + self.settings.num_behind
        return (group, tuple(request.tokens[:end])) if end <= len(request.tokens) else None

    def make_known(self, request: Request, num_tokens: int) -> None:
        """The full blocks of the first so many tokens can be hit from now on (22, H6, H9)."""
        if not self.settings.enable_prefix_caching:
            return
        end = max(0, min(num_tokens, len(request.tokens))) // self.unit * self.unit
        for group, (size, places) in enumerate(zip(self.sizes, request.blocks, strict=True)):
            for place, block in enumerate(places[: end // size]):
                if block is not None and block.content is None and self.is_kept(request, group, place):
                    block.content = self.content(request, group, place)
                    if block.content is not None:
                        self.copies.setdefault(block.content, []).append(block)

    def is_kept(self, request: Request, group: int, place: int) -> bool:
        """Whether a block is one of those that become known at all (H6, H7)."""
        if self.windows[group] is None:
            return True
        size, kept = self.sizes[group], self.num_kept(group)
        ends = [(len(request.prompt) - 1) // self.unit * self.unit]
        if request.full_hit > request.common_hit:
            ends.append(request.full_hit)
        interval = self.settings.prefix_cache_retention_interval
        interval = self.unit if interval is None else interval
        if interval:
            ends.append(math.ceil((place + 1) * size / interval) * interval)
        return any(end // size - kept <= place < end // size for end in ends)

    def hits(self, request: Request) -> Places:
        """The blocks found for it, group by group (21, H5)."""
        length = self.hit_length(request) if self.settings.enable_prefix_caching else 0
        if self.settings.drops_last_hit:
            length = max(0, length - self.unit)
        found: Places = []
        for group, size in enumerate(self.sizes):
            passed = self.num_passed(group, length)
            blocks = [self.found(request, group, place) for place in range(passed, length // size)]
            assert None not in blocks
            found.append([None] * passed + blocks)
        request.common_hit = length
        return found

    def hit_length(self, request: Request) -> int:
        """Tokens hit in all groups, one at least left to compute."""
        length = (len(request.tokens) - 1) // self.unit * self.unit
        for group in self.groups_of(None):
            length = self.whole_run(request, [group], length)
        request.full_hit = length if None in self.windows else 0
        before = -1
        while length != before:
            before = length
            for window in set(self.windows) - {None}:
                length = self.sliding_hit(request, self.groups_of(window), length)
        return length

    def groups_of(self, window: int | None) -> list[int]:
        return [group for group, its in enumerate(self.windows) if its == window]

    def found(self, request: Request, group: int, place: int) -> Block | None:
        content = self.content(request, group, place)
        copies = self.copies.get(content, []) if content else []
        return copies[0] if copies else None

    def is_found(self, request: Request, groups: list[int], place: int) -> bool:
        return all(self.found(request, group, place) for group in groups)

    def whole_run(self, request: Request, groups: list[int], length: int) -> int:
        """The longest run of known blocks from the first."""
        size, end = self.sizes[groups[0]], 0
        while (end + 1) * size <= length and self.is_found(request, groups, end):
            end += 1
        return end * size // self.unit * self.unit

    def sliding_hit(self, request: Request, groups: list[int], length: int) -> int:
        """Up to the rightmost run of known blocks that fills the window, or else that from the first."""
        assert len({self.sizes[group] for group in groups}) == 1
        size, kept = self.sizes[groups[0]], self.num_kept(groups[0])
        is_known = [self.is_found(request, groups, place) for place in range(length // size)]
        for end in range(length, kept * size - 1, -self.unit):
            if all(is_known[end // size - kept : end // size]):
                return end
        return self.whole_run(request, groups, length)
