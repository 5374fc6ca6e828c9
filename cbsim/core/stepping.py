"""Stepwise: replicas gone through step by step by whoever wants to see or change something in between.

The rules are those of every run, interpreted, over lists of objects that grow as requests come: `Request`
itself stands for its record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from math import inf, nan
from typing import Any

import numpy as np

from cbsim.base.records import packed, plain, record_class
from cbsim.core import layout, loop
from cbsim.core.building import PoolParts, RouterParts, new_cluster, new_extras, new_planned
from cbsim.core.contents import NODE_FACTOR
from cbsim.core.driver import Parts, fault_of
from cbsim.core.intake import Chains, Lists, Numbering, affinity_of
from cbsim.core.layout import NOBODY, World, replica_of, with_replicas
from cbsim.core.loop import begin as begin_step
from cbsim.core.loop import plan as plan_step
from cbsim.core.record import TABLES, Record
from cbsim.core.replica_view import DECISIONS, ReplicaView, Slice
from cbsim.core.transfers import next_transfer_s
from cbsim.core.waiting_queue import head_of_queue
from cbsim.workload.request import Request


class Rows(list[Any]):
    """A table that grows when the row behind its last one is touched."""

    def __init__(self, new_row: Callable[[], Any], rows: Iterable[Any] = ()) -> None:
        super().__init__(rows)
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
        pools: Sequence[PoolParts],
        *,
        routers: Sequence[RouterParts] = (RouterParts(),),
        prefill_s: Sequence[Callable[[int], float]] = (),
        job_length: Callable[[str, int, int], float] | None = None,
        chances: Sequence[float] | None = None,
        draw: Callable[[], int] = int,
        by_session: bool = False,
        watches: Mapping[str, Callable[..., Any]] | None = None,
        make_replica: Callable[[StepwiseWorld, int], Stepper] | None = None,
        **cluster: Any,
    ) -> None:
        """`parts` are the scheduler's; the costs of `pools` are what its `step_s` takes; `prefill_s`, by
        pool, prices a prompt alone, for the preemption `cheaper`; `job_length` is what `sjf` orders by;
        `chances`, by position, that drafts are accepted, are given with speculation or a connector. `draw`
        gives the `route` of each request; `by_session`: requests belong together by their sessions alone.
        `watches` stand for functions of the core, by name: whoever watches calls the function that he
        replaces. `make_replica` makes the `Stepper` of each replica from this world and its number. The rest
        as for `new_cluster`; with empty `turns`, requests are planned, and `feed.run` sends them.
        """
        made: World = plain(
            new_cluster(new_planned(0), pools, routers, log_rows=1, **cluster)._replace(replicas=())
        )
        self.requests = Rows(self._new_visit)
        """In order of arrival, those that were rejected too."""
        tables = {
            name: Rows(partial(_new_row, dtype)) if dtype.names else Rows(float)
            for name, dtype in TABLES.items()
        }
        self._job_length, self._draw, self._by_session = job_length, draw, by_session
        self._users, self._affinities, self._chains = Numbering(), Numbering(), Chains()
        self._lists = None if chances is None else Lists(chances)
        self.records: World = with_replicas(
            made._replace(
                requests=self.requests,
                nodes=Nodes(),
                log=made.log._replace(**tables),
                segments=[],
                tables=[[Rows(int, row) for row in rows] for rows in made.tables],
                extras=Rows(_new_extra),
                planned=[],
                planned_extras=[],
                turns=[],
                starts=[],
                transfers=[Rows(int) for _ in made.transfers],
                on_link=Rows(partial(_new_row, layout.TRANSFER), made.on_link),
                client_heap=Rows(partial(_new_row, layout.CLIENT), made.client_heap),
                costs=[plain(each.cost) if _is_record(each.cost) else each.cost for each in pools],
                prefill_s=[_Prices(price) for price in prefill_s] or [[0.0] for _ in pools],
                acceptance=made.acceptance if self._lists is None else self._lists.values,
            )
        )
        for own in self.records.own:
            own.num_nodes = NODE_FACTOR
        self.parts = parts
        self.watches = dict(watches or {})
        self._core = Parts({**parts.rules, **self.watches}, parts.step_s).bound(loop.call)
        self._bound: dict[Callable[..., Any], Callable[..., Any]] = {}
        self.replicas = [(make_replica or Stepper)(self, number) for number in range(len(made.own))]

    def bound(
        self, function: Callable[..., Any], watches: Mapping[str, Callable[..., Any]] | None = None
    ) -> Callable[..., Any]:
        """A function of the core with this world's rules and watches, and further watches of a replica's."""
        if watches:
            parts = Parts({**self.parts.rules, **self.watches, **watches}, self.parts.step_s)
            return parts.bound(function).interpreted
        if function not in self._bound:
            self._bound[function] = self._core.other(function).interpreted
        return self._bound[function]

    def add(self, request: Request) -> None:
        """A request is known from now on, under the next index; what it has got already it keeps."""
        request.index = len(self.requests)
        self._know(request, self.records.extras)
        self.requests.append(request)

    def plan(self, request: Request, *, is_next: bool = False) -> None:
        """A request will be sent at its `arrival_s`, after all that are planned, or before: `is_next`."""
        records = self.records
        place = records.clients.num_started if is_next else len(records.starts)
        records.starts.insert(place, len(records.planned))
        request.source = len(records.planned)
        self._know(request, records.planned_extras)
        records.planned.append(request)
        records.turns.append(record_class(layout.FOLLOWING)(0.0, NOBODY))

    def _know(self, request: Request, extras: list[Any]) -> None:
        """Numbers for its names, and NaN for what has not come."""
        if request.deadline_s is None:
            request.deadline_s = inf
        request.job_length = float(request.num_output_tokens)
        if self._job_length is not None:
            request.job_length = self._job_length(
                request.request_id, request.num_prompt_tokens, request.num_output_tokens
            )
        for name in ("first_scheduled_at_s", "first_token_at_s", "last_token_at_s"):
            if getattr(request, name) is None:
                setattr(request, name, nan)
        request.user_number = self._users.number(request.user or "")
        prompt = None if self._by_session else request.prompt
        request.affinity = self._affinities.number(affinity_of(request.session_id, prompt))
        while len(self.records.users[0]) <= request.user_number:
            for users in self.records.users:
                users.append(record_class(layout.USER)(0, NOBODY, NOBODY))
        for homes in self.records.homes:
            homes.extend([NOBODY] * (request.affinity + 1 - len(homes)))
        if self._lists is not None:
            extra = _new_extra()
            for name, value in self._lists.numbers(request.extra or {}).items():
                setattr(extra, name, value)
            extras.append(extra)
        if any(own.prefix_caching for own in self.records.own):
            request.first_link, request.end_link = self._chains.add(
                request.request_id, request.prompt, request.num_prompt_tokens, request.num_output_tokens
            )
            segments = self.records.segments
            segments.extend(
                record_class(layout.SEGMENT)(start, node)
                for start, node in self._chains.from_row(len(segments))
            )

    def _new_visit(self) -> Request:
        """The row of a planned request that is sent next, or comes to another replica."""
        visit = Request("", 0.0, 0, 0)
        visit.index, visit.route, visit.deadline_s = len(self.requests), self._draw(), inf
        visit.first_scheduled_at_s = visit.first_token_at_s = visit.last_token_at_s = nan
        return visit

    def request_rows(self) -> Any:
        """The requests as records."""
        return packed(self.requests, layout.REQUEST)

    def own_rows(self) -> Any:
        """What the replicas have counted."""
        return packed(self.records.own, layout.OWN)

    def record(self) -> Record:
        """What was written down since the last call."""
        record = Record()
        record.take(self.records.log)
        for table in TABLES:
            getattr(self.records.log, table).clear()
        return record


class Stepper(ReplicaView):
    """One replica: `call` lets its scheduler decide, `end_step` lets the step under way take effect.

    At one instant arrivals are submitted, then the step that ends takes effect, then the scheduler is called.
    """

    def __init__(self, world: StepwiseWorld, number: int) -> None:
        records = replica_of(world.records, number)
        super().__init__(
            records, world.requests, lambda: world.requests, lambda: self.decided_at_s, world.bound
        )
        self.world = world
        self.decided_at_s = 0.0
        """When the scheduler was last asked."""
        watches = self.watches()
        self._submit, self._call = world.bound(loop.submit, watches), world.bound(loop.call, watches)
        self._end_step = world.bound(loop.end_step, watches)
        self._launch = world.bound(loop.launch, watches)
        self._wake_at_s = world.bound(loop.wake_at_s, watches)
        self._next_transfer_s = world.bound(next_transfer_s, watches)

    def watches(self) -> dict[str, Callable[..., Any]]:
        """What stands for functions of the core in this replica alone, as `StepwiseWorld`'s `watches`."""
        return {}

    def submit(self, request: Request) -> bool:
        """A request arrives, at its `arrival_s`; False if it was rejected."""
        self.world.add(request)
        accepted = bool(self._submit(self.records, request, request.arrival_s))
        if accepted and self.num_ranks > 1:
            loop.wait_for_ranks(self._ranks(), 0, self.num_ranks, self.replica - self.first_rank)
        self.make_room()
        return accepted

    @property
    def num_ranks(self) -> int:
        """Replicas that work in step, this one among them."""
        return int(self.records.config.num_ranks)

    @property
    def first_rank(self) -> int:
        """The number of the first of them."""
        return self.replica - self.replica % self.num_ranks

    def _ranks(self) -> list[Any]:
        replicas = self.world.replicas[self.first_rank : self.first_rank + self.num_ranks]
        return [replica.records for replica in replicas]

    @property
    def is_held(self) -> bool:
        """Whether a step is decided that waits for the other ranks."""
        return loop.is_held(self.records)

    def launch(self, now: float) -> None:
        """Begin the steps that this rank and those in step with it have decided.

        Raises `RuleFault` as `call` does.
        """
        ranks = self._ranks()
        self._launch(ranks, 0, len(ranks), self.world.records.costs[0], now)
        for rank in ranks:
            if rank.own.fault != layout.NO_FAULT:
                raise fault_of(rank.own, now)

    def make_room(self) -> None:
        """Make lists that the rules fill by place as long as they can come to need for those who are here.

        Needed after `max_num_seqs` has changed, too.
        """
        records = self.records
        most = min(records.config.max_num_seqs, self.own.num_outstanding) + 1
        for list_, length in (
            (records.running, most),
            (records.order, most),
            (records.candidates, most * self.own.num_in_flight),
        ):
            list_.extend([0] * (length - len(list_)))
        for slices in records.slices:
            slices.extend(_new_row(layout.SLICE) for _ in range(most - len(slices)))
        records.chunks.extend(_new_row(layout.CHUNK) for _ in range(most - len(records.chunks)))
        if not self.own.has_identities:
            return
        num_groups, tables, shares = self.own.num_groups, records.tables, records.shares
        num_holders = self.own.num_outstanding + self.own.num_transfers if records.extras else most
        while len(tables) < (num_holders + 2) * num_groups:
            # In front of the last slot, which holds what lookups find; the chain of free slots ends there.
            place, slot = len(tables) - num_groups, len(tables) // num_groups
            for number in range(num_groups):
                tables.insert(place + number, Rows(int, [slot]))
                shares.append(_new_row(layout.SHARE))

    def call(self, now: float) -> None:
        """Let the scheduler decide steps until enough are under way or it has nothing to do.

        Raises `RuleFault` for what a rule must not do.
        """
        self.decided_at_s = now
        self._call(self.records, self.world.records.costs[0], now)
        own = self.own
        if own.fault != layout.NO_FAULT:
            raise fault_of(own, now)

    def end_step(self) -> list[Request]:
        """The step under way ends: its tokens come out. Returns the requests that got their last one."""
        num_finished = self._end_step(self.records)
        return [self.requests[index] for index in self.records.candidates[:num_finished]]

    def wake_at_s(self) -> float | None:
        """When an idle scheduler is to be asked again although nothing arrived; `None` for never."""
        at_s = min(self._wake_at_s(self.records), self._next_transfer_s(self.records))
        return None if at_s == inf else at_s

    @property
    def next_end_s(self) -> float | None:
        """When the running step ends; `None` if the replica is idle."""
        return self.under_way[0].end_s if self.own.num_begun else None

    @property
    def last_end_s(self) -> float:
        """When the last step that has run ended; 0 before the first."""
        return self.own.last_end_s

    def head(self, now: float) -> Request | None:
        """The request to be admitted next."""
        index = self.world.bound(head_of_queue)(self.records, now)
        return None if index == NOBODY else self.requests[index]


class WatchedStepper(Stepper):
    """A replica whose decisions can be looked at one by one, as a single `call` may decide several steps."""

    def decided(self, step: Any) -> None:
        """The scheduler has decided a `STEP`, which may have no slices and then does not begin."""

    def began(self, step: Any) -> None:
        """A step is under way, numbered and priced. Its end may still be changed."""

    def watches(self) -> dict[str, Callable[..., Any]]:
        """See `Stepper.watches`."""

        def plan(replica: Any, step: Any, place: int, now: float) -> None:
            plan_step(replica, step, place, now)
            if replica.own.fault == layout.NO_FAULT:
                self.decided(step)

        def begin(replica: Any, cost: Any, step: Any) -> None:
            begin_step(replica, cost, step)
            if replica.own.fault == layout.NO_FAULT:
                self.began(step)

        return {**super().watches(), "plan": plan, "begin": begin}


class _Prices:
    """Prices of prompts by their tokens, found when asked for."""

    def __init__(self, price: Callable[[int], float]) -> None:
        self._price = price

    def __getitem__(self, num_tokens: int) -> float:
        return self._price(num_tokens)


def _new_row(dtype: np.dtype[Any]) -> Any:
    return record_class(dtype)(*([0] * len(dtype.names or ())))


def _new_extra() -> Any:
    return plain(new_extras(1))[0]


def _is_record(cost: Any) -> bool:
    return isinstance(cost, tuple) and hasattr(cost, "_fields")


__all__ = ["DECISIONS", "Slice", "Stepper", "StepwiseWorld", "WatchedStepper"]
