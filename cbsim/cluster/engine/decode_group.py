"""Decoding requests as counts: a step of all of them costs the same however many there are."""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import NamedTuple

import numpy as np

from cbsim.cluster.engine.recorder import Column, Table
from cbsim.schedulers.kvcache import BlockPool
from cbsim.workload.request import Request

MAX_STALE = 8
"""So many entries of the heap of contexts, for each active member, may be of members that have left."""


class Member(NamedTuple):
    """A request in the group. Group steps are numbered from 0 over the whole run."""

    request: Request
    first: int
    """The first group step that decodes it."""
    last: int
    """The one that makes its last token."""
    num_computed_tokens: int
    """Before the first."""


class DecodeGroup:
    """Requests that each get one token in every group step until they have all.

    A member that joins at group step p has a fixed future: its last step is `p + tokens left - 1`, its
    context grows by one a step, and it needs a KV block whenever that context is a multiple of the block
    size. So the state is a few integers, counters of block needs by phase, and the members by their last
    step.
    """

    def __init__(self, pool: BlockPool, *, takes_blocks: bool) -> None:
        """`takes_blocks` is False where all blocks were reserved at admission."""
        self.pool = pool
        self.takes_blocks = takes_blocks
        self.has_identities = takes_blocks and pool.has_identities
        """Whether blocks are given by number, member by member."""
        self.num_phases = pool.block_size
        self.num_planned = 0
        """Group steps decided so far."""
        self.num_committed = 0
        """Those of them that have run."""
        self.num_active = 0
        """Members that the next group step decodes."""
        self.context = 0
        """Sum of their computed tokens before it."""
        self.num_hidden = 0
        """Members in all."""
        self.num_lingering = 0
        """Members whose last token is in flight: they hold slot and blocks until it comes out."""
        self.lingering_context = 0
        """Sum of their computed tokens."""
        self.max_admission = -1
        """No active member was admitted later than this."""
        self.needs = [0] * pool.block_size
        """How many active members need a block in group steps of each remainder modulo the block size."""
        self._needing: list[list[Member]] = [[] for _ in self.needs] if self.has_identities else []
        self._ending: dict[int, list[Member]] = {}
        self._ends: list[int] = []
        self._longest: list[tuple[int, int]] = []
        self._leaving: dict[int, list[Member]] = {}
        self._takers = Table((), ("first", "last"), "i")
        """Of members that have left: the group step of their first new block, and their last step."""

    @property
    def next_end(self) -> int:
        """The group step that makes the last token of some active member. There must be one."""
        return self._ends[0]

    @property
    def num_needed(self) -> int:
        """KV blocks that the next group step takes."""
        return self.needs[self.num_planned % self.num_phases]

    @property
    def max_context(self) -> int:
        """Tokens that the longest member attends to in the next group step, the one computed now included."""
        longest, planned = self._longest, self.num_planned
        while longest[0][1] < planned:
            heappop(longest)
        return planned + 1 - longest[0][0]

    def join(self, request: Request) -> None:
        """Take in a request whose next slice is to be a decode, with tokens left to make."""
        first = self.num_planned
        num_made = request.num_generated_tokens + request.num_in_flight_tokens
        last = first + request.num_output_tokens - num_made - 1
        computed = request.num_computed_tokens
        member = Member(request, first, last, computed)
        if not self.num_active or request.admission > self.max_admission:
            self.max_admission = request.admission
        self.num_active += 1
        self.num_hidden += 1
        self.context += computed
        if self.takes_blocks:
            self._add_need(member)
        heappush(self._longest, (first - computed, last))
        if len(self._longest) > MAX_STALE * (self.num_active + MAX_STALE):
            # Who has left is dropped when it comes to the top, or here, lest the heap grow for ever.
            self._longest = [entry for entry in self._longest if entry[1] >= first]
            heapify(self._longest)
        if last in self._ending:
            self._ending[last].append(member)
        else:
            self._ending[last] = [member]
            heappush(self._ends, last)

    def step(self) -> None:
        """Decide a group step: every active member takes one token, and the block it needs for it."""
        self.take_blocks(1)
        self.advance(1)

    def num_affordable(self, num_steps: int) -> int:
        """How many of the next so many group steps find their blocks; the first one does."""
        num_free = self.pool.num_free
        if not self.takes_blocks or self.num_active * (num_steps // self.num_phases + 1) <= num_free:
            return num_steps
        # Blocks taken grow with steps, so halving finds the last that is affordable.
        affordable, beyond = 1, num_steps + 1
        while beyond - affordable > 1:
            middle = (affordable + beyond) // 2
            if self.num_blocks_of(middle) <= num_free:
                affordable = middle
            else:
                beyond = middle
        return affordable

    def num_blocks_of(self, num_steps: int) -> int:
        """KV blocks that the next so many group steps take: in each round of phases one for every member."""
        needs, num_phases = self.needs, self.num_phases
        num_rounds, rest = divmod(num_steps, num_phases)
        start = self.num_planned % num_phases
        num_blocks = sum(needs[start : start + rest])
        if start + rest > num_phases:
            num_blocks += sum(needs[: start + rest - num_phases])
        return num_rounds * self.num_active + num_blocks

    def take_blocks(self, num_steps: int) -> None:
        """Take the blocks of the next group steps, each of which begins when the one before has run."""
        if self.has_identities:
            for step in range(num_steps):
                self._take_numbered(self.num_planned + step, self.num_committed + step)
        elif self.takes_blocks:
            self.pool.num_free -= self.num_needed if num_steps == 1 else self.num_blocks_of(num_steps)

    def advance(self, num_steps: int) -> None:
        """So many group steps have been decided, blocks apart, and the last may end somebody."""
        self.num_planned += num_steps
        self.context += num_steps * self.num_active
        ends = self._ends
        if ends and ends[0] < self.num_planned:
            self._retire()

    def commit(self) -> list[Member]:
        """A group step has run: the members that got their last token, in order of admission."""
        step = self.num_committed
        self.num_committed = step + 1
        return self._let_go(step) if step in self._leaving else []

    def members_of(self, step: int) -> list[Member]:
        """Who takes part in a group step that has been decided and not yet run."""
        everyone = [*self._ending.values(), *self._leaving.values()]
        return [member for members in everyone for member in members if member.first <= step <= member.last]

    def dissolve(self) -> list[Member]:
        """Let everybody go, up to date; group steps decided and not yet run are no group steps any more."""
        members = [
            m for group in (self._ending, self._leaving) for members in group.values() for m in members
        ]
        for member in members:
            self._leave(member)
        # A step has one number for ever: those taken apart keep theirs, with nobody in them.
        self.num_committed = self.num_planned
        self.num_active = self.num_lingering = self.num_hidden = self.context = self.lingering_context = 0
        self.max_admission = -1
        self.needs = [0] * self.num_phases
        self._needing = [[] for _ in self._needing]
        self._ending.clear()
        self._ends.clear()
        self._longest.clear()
        self._leaving.clear()
        return members

    def blocks_taken(self) -> Column:
        """KV blocks that each group step took, once everybody has left."""
        takers = self._takers.to_columns()
        first, last, num_phases = takers["first"].astype(np.int64), takers["last"], self.num_phases
        counts = np.maximum(0, (last - first) // num_phases + 1)
        place = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        steps = np.repeat(first, counts) + num_phases * place
        taken = np.bincount(steps, minlength=self.num_planned)
        # One number for every step of a long run: seldom more than a byte is needed.
        smallest: Column = taken.astype(np.min_scalar_type(int(taken.max(initial=0))))
        return smallest

    def _retire(self) -> None:
        """Let the members whose last step has just been decided linger until it has run."""
        ended = heappop(self._ends)
        members = self._leaving[ended] = self._ending.pop(ended)
        self.num_active -= len(members)
        self.num_lingering += len(members)
        for member in members:
            computed = member.num_computed_tokens + ended + 1 - member.first
            self.context -= computed
            self.lingering_context += computed
            if self.takes_blocks:
                self._drop_need(member)

    def _let_go(self, step: int) -> list[Member]:
        members = self._leaving.pop(step)
        if len(members) > 1:
            members.sort(key=lambda member: member.request.admission)
        self.num_lingering -= len(members)
        self.num_hidden -= len(members)
        for member in members:
            self._leave(member)
            self.lingering_context -= member.request.num_computed_tokens
        return members

    def _leave(self, member: Member) -> None:
        """Bring a member's request up to date with the group steps decided and run."""
        request, first, last, computed = member
        num_planned = min(self.num_planned, last + 1) - first
        num_committed = min(max(self.num_committed - first, 0), num_planned)
        request.num_computed_tokens = computed + num_planned
        request.num_generated_tokens += num_committed
        request.num_in_flight_tokens += num_planned - num_committed
        if self.takes_blocks:
            self._takers.append(first + -computed % self.num_phases, first + num_planned - 1)
            if not self.has_identities:
                request.num_blocks = max(request.num_blocks, self.pool.blocks_for(computed + num_planned))

    def _add_need(self, member: Member) -> None:
        phase = (member.first - member.num_computed_tokens) % self.num_phases
        self.needs[phase] += 1
        if self._needing:
            members = self._needing[phase]
            members.append(member)
            if len(members) > 1 and members[-2].request.admission > member.request.admission:
                members.sort(key=lambda member: member.request.admission)

    def _drop_need(self, member: Member) -> None:
        phase = (member.first - member.num_computed_tokens) % self.num_phases
        self.needs[phase] -= 1
        if self._needing:
            self._needing[phase].remove(member)

    def _take_numbered(self, step: int, num_committed: int) -> None:
        """Give blocks by number to the members that need one in a group step, and publish those they fill.

        What a block holds becomes known in the step that fills it, or, if its last token was in flight then,
        in the one after.
        """
        pool, num_phases = self.pool, self.num_phases
        needing = self._needing[step % num_phases]
        for member in needing:
            pool.allocate(member.request, 1)
        if not pool.prefix_caching:
            return
        for members in (needing, self._needing[(step + 1) % num_phases]):
            for request, first, _, computed in members:
                known = request.num_known_tokens + max(num_committed - first, 0)
                pool.publish(request, min(computed + step + 1 - first, known))
