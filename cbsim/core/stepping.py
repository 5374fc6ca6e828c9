"""Stepwise: replicas gone through step by step by whoever wants to see or change something in between.

The rules are those of every run, interpreted, over lists of objects that grow as requests come: `Request`
itself stands for its record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import inf, nan
from typing import Any, NamedTuple

import numpy as np

from cbsim.base.records import plain, record_class
from cbsim.core import layout, loop
from cbsim.core.building import KvPool, Numbers, new_requests, new_world
from cbsim.core.driver import Parts, fault_of
from cbsim.core.feed import replica_of
from cbsim.core.intake import Chains, Numbering, affinity_of
from cbsim.core.layout import NOBODY, World
from cbsim.core.pool import NODE_FACTOR
from cbsim.core.record import TABLES, Record
from cbsim.core.waiting_queue import head_of_queue, is_aged, rank_of
from cbsim.workload.request import Request, RequestState

DECISIONS = {
    layout.ADMITTED: "admitted",
    layout.RESUMED: "resumed",
    layout.PREEMPTED_NOW: "preempted",
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


class Rows(list[Any]):
    """A table of the log that grows when the row behind its last one is touched."""

    def __init__(self, new_row: Callable[[], Any]) -> None:
        super().__init__()
        self._new_row = new_row

    def __getitem__(self, place: Any) -> Any:
        if place == len(self):
            self.append(self._new_row())
        return super().__getitem__(place)

    def __setitem__(self, place: Any, value: Any) -> None:
        if place == len(self):
            self.append(value)
        else:
            super().__setitem__(place, value)


class Nodes(dict[int, Any]):
    """Nodes of heaps by their numbers, made when first looked at."""

    def __missing__(self, number: int) -> Any:
        node = self[number] = record_class(layout.NODE)(0.0, NOBODY, NOBODY, NOBODY, 0)
        return node


class StepwiseWorld:
    """Replicas and the requests that have come to them, interpreted."""

    def __init__(
        self,
        parts: Parts,
        cost: Any,
        pool: KvPool,
        config: Numbers,
        *,
        num_replicas: int = 1,
        num_in_flight: int = 1,
        prefill_s: Callable[[int], float] | None = None,
        job_length: Callable[[str, int, int], float] | None = None,
        watches: Mapping[str, Callable[..., Any]] | None = None,
    ) -> None:
        """`parts` and `config` are the scheduler's; `cost` is what its `step_s` takes; `prefill_s` prices a
        prompt alone, for the preemption `cheaper`; `job_length` is what `sjf` orders by. `watches` stand for
        functions of the core, by name: whoever watches calls the function that he replaces.
        """
        made: World = plain(
            new_world(
                new_requests(0),
                cost,
                pool,
                config,
                num_replicas=num_replicas,
                num_in_flight=num_in_flight,
                log_rows=1,
            )
        )
        self.requests: list[Request] = []
        """In order of arrival, those that were rejected too."""
        self.pool = pool
        tables = {
            name: Rows(partial(_new_row, dtype)) if dtype.names else Rows(float)
            for name, dtype in TABLES.items()
        }
        log = made.log._replace(**tables)
        self.records: World = made._replace(
            requests=self.requests,
            nodes=Nodes(),
            log=log,
            segments=[],
            cost=cost if not _is_record(cost) else plain(cost),
            prefill_s=_Prices(prefill_s) if prefill_s else [0.0],
        )
        for own in self.records.own:
            own.num_nodes = NODE_FACTOR
        self.parts = parts
        self.watches = dict(watches or {})
        self._bound: dict[Callable[..., Any], Callable[..., Any]] = {}
        self._job_length = job_length
        self._users, self._affinities, self._chains = Numbering(), Numbering(), Chains()
        self.replicas = [Stepper(self, number) for number in range(num_replicas)]

    def bound(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function of the core with this world's rules, the same at each call."""
        if function not in self._bound:
            parts = Parts({**self.parts.rules, **self.watches}, self.parts.step_s)
            self._bound[function] = parts.bound(function).interpreted
        return self._bound[function]

    def add(self, request: Request) -> None:
        """A request is known from now on, under the next index; room is made for it."""
        request.index = len(self.requests)
        if request.deadline_s is None:
            request.deadline_s = inf
        if self._job_length is not None:
            request.job_length = self._job_length(
                request.request_id, request.num_prompt_tokens, request.num_output_tokens
            )
        for name in ("first_scheduled_at_s", "first_token_at_s", "last_token_at_s"):
            setattr(request, name, nan)
        request.user_number = self._users.number(request.user or "")
        request.affinity = self._affinities.number(affinity_of(request.session_id, request.prompt))
        self.requests.append(request)
        while len(self.records.users[0]) <= request.user_number:
            for users in self.records.users:
                users.append(record_class(layout.USER)(0, NOBODY, NOBODY))
        while len(self.records.homes) <= request.affinity:
            self.records.homes.append(NOBODY)
        if self.pool.prefix_caching:
            request.first_link, request.end_link = self._chains.add(
                request.request_id, request.prompt, request.num_prompt_tokens, request.num_output_tokens
            )
            segments = self.records.segments
            segments.extend(
                record_class(layout.SEGMENT)(start, node)
                for start, node in self._chains.from_row(len(segments))
            )

    def record(self) -> Record:
        """What was written down since the last call."""
        record = Record()
        record.take(self.records.log)
        for table in self.records.log[1:]:
            table.clear()
        return record


class Stepper:
    """One replica: `call` lets its scheduler decide, `end_step` lets the step under way take effect.

    At one instant arrivals are submitted, then the step that ends takes effect, then the scheduler is called.
    """

    def __init__(self, world: StepwiseWorld, number: int) -> None:
        self.world = world
        self.replica = number
        self.records = replica_of(world.records, number)
        self.own = self.records.own
        self._submit, self._call = world.bound(loop.submit), world.bound(loop.call)
        self._end_step, self._wake_at_s = world.bound(loop.end_step), world.bound(loop.wake_at_s)

    def submit(self, request: Request) -> bool:
        """A request arrives, at its `arrival_s`; False if it was rejected."""
        self.world.add(request)
        self._make_room(request)
        return bool(self._submit(self.records, request))

    def call(self, now: float) -> None:
        """Let the scheduler decide steps until enough are under way or it has nothing to do.

        Raises `RuleFault` for what a rule must not do.
        """
        self._call(self.records, self.world.records.cost, now)
        own = self.own
        if own.fault != layout.NO_FAULT:
            raise fault_of(own, now)

    def end_step(self) -> list[Request]:
        """The step under way ends: its tokens come out. Returns the requests that got their last one."""
        num_finished = self._end_step(self.records)
        return [self.world.requests[index] for index in self.records.candidates[:num_finished]]

    def wake_at_s(self) -> float | None:
        """When an idle scheduler is to be asked again although nothing arrived; `None` for never."""
        at_s = self._wake_at_s(self.records)
        return None if at_s == inf else at_s

    @property
    def next_end_s(self) -> float | None:
        """When the running step ends; `None` if the replica is idle."""
        return self.under_way[0].end_s if self.own.num_under_way else None

    @property
    def last_end_s(self) -> float:
        """When the last step that has run ended; 0 before the first."""
        return self.own.last_end_s

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
        return [ring[(own.first_under_way + number) % len(ring)] for number in range(own.num_under_way)]

    def slices(self, step: Any) -> list[Slice]:
        """Each request's share of a step under way, or of the one that ended last."""
        return [
            Slice(
                self.world.requests[part.request],
                part.num_tokens,
                part.num_computed_tokens,
                bool(part.is_prefill),
                bool(part.emits),
                part.num_preemptions,
            )
            for part in self.records.slices[step.place][: step.num_slices]
        ]

    def decisions(self, step: Any) -> list[tuple[str, Request, int]]:
        """What the latest call decided: `(admitted | resumed | preempted, request, prefix-cache tokens)`."""
        end = self.records.log.lengths.events
        rows = self.records.log.events[end - step.num_decisions : end]
        return [(DECISIONS[row.event], self.world.requests[row.request], row.num_tokens) for row in rows]

    @property
    def running(self) -> list[Request]:
        """The running requests in order of admission."""
        return [self.world.requests[index] for index in self.records.running[: self.own.num_running]]

    def waiting(self, now: float) -> list[Request]:
        """The waiting requests in the order in which they would be admitted, as far as it is known."""
        states = (RequestState.WAITING, RequestState.PREEMPTED)
        here = [
            request
            for request in self.world.requests
            if request.replica == self.replica and request.state in states
        ]
        rank, has_aged = self.world.bound(rank_of), self.world.bound(is_aged)

        def key(request: Request) -> tuple[bool, float, int]:
            if has_aged(self.records, request, now):
                return (False, 0.0, request.index)
            return (True, rank(self.records, request), request.index)

        return sorted(here, key=key)

    def head(self, now: float) -> Request | None:
        """The request to be admitted next."""
        index = self.world.bound(head_of_queue)(self.records, now)
        return None if index == NOBODY else self.world.requests[index]

    def blocks_of(self, request: Request) -> list[int]:
        """The numbers of the blocks that a request holds, in order of position, where blocks have numbers."""
        if not self.own.has_identities or request.slot == NOBODY:
            return []
        blocks: list[int] = self.records.tables[request.slot][: request.num_blocks]
        return blocks

    def check_integrity(self) -> None:
        """Raise RuntimeError unless every KV block is either free or held, and by the requests here."""
        own, records = self.own, self.records
        here = [request for request in self.world.requests if request.replica == self.replica]
        if not own.has_identities:
            num_held = sum(request.num_blocks for request in here)
            if not 0 <= own.num_free <= own.num_blocks or num_held != own.num_blocks - own.num_free:
                raise RuntimeError(f"{num_held} KV blocks held, {own.num_free} free, {own.num_blocks} in all")
            return
        num_shares = [0] * own.num_blocks
        for request in here:
            for block in self.blocks_of(request):
                num_shares[block] += 1
        blocks = records.blocks
        if num_shares != [block.num_holders for block in blocks[: own.num_blocks]]:
            raise RuntimeError("the shares of KV blocks don't add up to those of their holders")
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

    def _make_room(self, request: Request) -> None:
        """Lists that the rules fill by place are as long as they can come to need."""
        records, own = self.records, self.own
        most = min(records.config.max_num_seqs, own.num_outstanding + 1) + 1
        for list_ in (records.running, records.order, records.candidates):
            list_.extend([0] * (most - len(list_)))
        for slices in records.slices:
            slices.extend(_new_row(layout.SLICE) for _ in range(most - len(slices)))
        records.chunks.extend(_new_row(layout.CHUNK) for _ in range(most - len(records.chunks)))
        if own.has_identities:
            tables = records.tables
            longest = len(tables[0])
            needed = (request.num_prompt_tokens + request.num_output_tokens) // own.block_size + 2
            needed = min(needed, own.num_blocks + 1)
            if needed > longest:
                for table in tables:
                    table.extend([0] * (needed - longest))
                longest = needed
            while len(tables) < most + 1:
                # In front of the last row, which holds what lookups find; the chain of free rows ends there.
                tables.insert(len(tables) - 1, [len(tables)] + [0] * (longest - 1))


class _Prices:
    """Prices of prompts by their tokens, found when asked for."""

    def __init__(self, price: Callable[[int], float]) -> None:
        self._price = price

    def __getitem__(self, num_tokens: int) -> float:
        return self._price(num_tokens)


def _new_row(dtype: np.dtype[Any]) -> Any:
    return record_class(dtype)(*([0] * len(dtype.names or ())))


def _is_record(cost: Any) -> bool:
    return isinstance(cost, tuple) and hasattr(cost, "_fields")


__all__ = ["DECISIONS", "Slice", "Stepper", "StepwiseWorld"]
