"""ReplicaView: what can be seen of a replica of the core, at either speed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, NamedTuple

from cbsim.core import layout
from cbsim.core.layout import NOBODY, Replica
from cbsim.core.waiting_queue import is_aged, rank_of
from cbsim.workload.request import Request, RequestState

DECISIONS = {
    layout.ADMITTED: "admitted",
    layout.RESUMED: "resumed",
    layout.PREEMPTED_NOW: "preempted",
    layout.LOAD_STARTED: "load_started",
    layout.READ: "read",
}


class Slice(NamedTuple):
    """One request's share of a step."""

    request: Request
    num_tokens: int
    num_computed_tokens: int
    """Before the step."""
    is_prefill: bool
    emits: bool
    """Whether a token comes out: all known tokens are computed after this slice."""
    num_preemptions: int
    """The request's, when planned: a preemption while the step is in flight shows by a higher count."""


class ReplicaView:
    """One replica as it stands at the instant of the look: nothing is changed through it."""

    def __init__(
        self,
        records: Replica,
        requests: Any,
        present: Callable[[], Iterable[Request]],
        now: Callable[[], float],
        bound: Callable[[Callable[..., Any]], Callable[..., Any]],
    ) -> None:
        """`records` are `plain` or `live`; `requests[i]` is the request of record i, and `present` gives all
        that may be here. `now` is the instant, seconds; `bound` binds a function to this scheduler's rules.
        """
        self.records, self.requests = records, requests
        self.own = records.own
        self.replica = int(records.own.replica)
        self.now = now
        self._present, self._bound = present, bound

    @property
    def num_outstanding(self) -> int:
        """Requests submitted and not ended."""
        return self.own.num_outstanding

    @property
    def num_blocks_used(self) -> int:
        """KV blocks held by requests. Free blocks that still hold reusable content don't count."""
        return self.own.num_blocks - self.own.num_free

    @property
    def under_way(self) -> list[Any]:
        """The steps (`STEP`) under way, the one that ends first before the others."""
        own, ring = self.own, self.records.under_way
        calls = (ring[(own.first_under_way + number) % len(ring)] for number in range(own.num_under_way))
        return [step for step in calls if step.num_slices]

    def slices(self, step: Any) -> list[Slice]:
        """Each request's share of a step under way, or of the one that ended last."""
        parts = self.records.slices[step.place][: step.num_slices]
        requests = [self.requests[part.request] for part in parts]
        return [
            Slice(
                request,
                part.num_tokens,
                part.num_computed_tokens,
                bool(part.is_prefill),
                bool(part.emits),
                request.num_preemptions - (request.preempted_in_call > step.call),
            )
            for request, part in zip(requests, parts, strict=True)
        ]

    def decisions(self, step: Any) -> list[tuple[str, Request, int]]:
        """What the latest call decided: `(admitted | resumed | preempted, request, prefix-cache tokens)`."""
        first = step.first_decision
        rows = self.records.log.events[first : first + step.num_decisions]
        return [(DECISIONS[row.event], self.requests[row.request], row.num_tokens) for row in rows]

    @property
    def running(self) -> list[Request]:
        """The running requests in order of admission."""
        return [self.requests[index] for index in self.records.running[: self.own.num_running]]

    def waiting(self, now: float) -> list[Request]:
        """The waiting requests in the order in which they would be admitted, as far as it is known."""
        states = (RequestState.WAITING, RequestState.PREEMPTED)
        here = [
            request
            for request in self._present()
            if request.replica == self.replica and request.state in states
        ]
        rank, has_aged = self._bound(rank_of), self._bound(is_aged)

        def key(request: Request) -> tuple[bool, float, int]:
            if has_aged(self.records, request, now):
                return (False, 0.0, request.index)
            return (True, rank(self.records, request), request.index)

        return sorted(here, key=key)

    def blocks_of(self, request: Request) -> list[int]:
        """The numbers of a request's blocks, group by group in order of position, if blocks have any."""
        return [block for blocks in self.blocks_by_group(request) for block in blocks if block != NOBODY]

    def blocks_by_group(self, request: Request) -> list[list[int]]:
        """The numbers of a request's blocks by group of layers, `NOBODY` for those behind a window."""
        num_groups = self.own.num_groups
        if not self.own.has_identities or request.slot == NOBODY:
            return [[] for _ in range(num_groups)]
        rows = range(request.slot * num_groups, (request.slot + 1) * num_groups)
        return [list(self.records.tables[row][: self.records.shares[row].num_places]) for row in rows]

    def check_integrity(self) -> None:
        """Raise RuntimeError unless every KV block is either free or held, and by the requests here."""
        own, records = self.own, self.records
        here = [request for request in records.requests if request.replica == self.replica]
        if not own.has_identities:
            num_held = sum(request.num_blocks for request in here)
            if not 0 <= own.num_free <= own.num_blocks or num_held != own.num_blocks - own.num_free:
                raise RuntimeError(f"{num_held} KV blocks held, {own.num_free} free, {own.num_blocks} in all")
            return
        num_shares = [0] * own.num_blocks
        for request in here:
            if len(self.blocks_of(request)) != request.num_blocks:
                raise RuntimeError(
                    f"request {request.index} holds other than its {request.num_blocks} KV blocks"
                )
            for block in self.blocks_of(request):
                num_shares[block] += 1
        blocks = records.blocks
        if num_shares != [block.num_holders for block in islice(blocks, own.num_blocks)]:
            raise RuntimeError("the shares of KV blocks don't add up to those of their holders")
        if sum(shares - 1 for shares in num_shares if shares) != own.num_shared_blocks:
            raise RuntimeError(f"{own.num_shared_blocks} shared KV blocks counted, which is wrong")
        free, at = [], blocks[own.num_blocks].next_free
        while at != own.num_blocks:
            free.append(at)
            at = blocks[at].next_free
        if sorted(free) != [block for block, shares in enumerate(num_shares) if shares == 0]:
            raise RuntimeError("a KV block is both free and held, or neither")
        if len(free) != own.num_free:
            raise RuntimeError(f"{len(free)} KV blocks in the free queue, {own.num_free} counted")
        num_cached = sum(blocks[block].key != NOBODY for block in free)
        if num_cached != own.num_cached_free:
            raise RuntimeError(f"{num_cached} free KV blocks with content, {own.num_cached_free} counted")
        for entry in records.keys:
            copy = entry.first if entry.key != NOBODY else NOBODY
            if entry.key != NOBODY and copy == NOBODY:
                raise RuntimeError("the prefix cache knows a content that no block holds")
            while copy != NOBODY:
                if blocks[copy].key != entry.key:
                    raise RuntimeError("the prefix cache knows a block by the wrong content")
                copy = blocks[copy].next_copy
