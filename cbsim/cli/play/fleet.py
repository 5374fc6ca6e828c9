"""Fleet: the replicas that are played, with what is between them: a run that stops after each step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import inf
from typing import Any, NamedTuple

import numpy as np

from cbsim.base.errors import ConfigError
from cbsim.cli.play import tuning
from cbsim.cli.play.replica import Event, Replica, Score, score_of
from cbsim.cli.play.settings import LIVE, NUM_BLOCKS, changes, told
from cbsim.core import layout
from cbsim.core.clients import next_arrival_s
from cbsim.core.driver import fault_of
from cbsim.core.feed import ARRIVAL, DONE, FAULT, STEP_END, arrive, run
from cbsim.core.layout import NOBODY
from cbsim.core.links import take_turn
from cbsim.core.loop import ask_at
from cbsim.core.loop import call as call_replica
from cbsim.core.loop import submit as submit_request
from cbsim.core.stepping import StepwiseWorld
from cbsim.studies.experiment import Experiment
from cbsim.studies.setup import Setup
from cbsim.studies.simulation import stepwise, told_fault
from cbsim.workload import Workload
from cbsim.workload.request import Request

_LIVE_KEYS = {NUM_BLOCKS, *(f"scheduler.{name}" for name in LIVE)}


class Transfer(NamedTuple):
    """The KV cache of a request on its way from one replica to another."""

    request: Request
    """As it is known where it will be decoded."""
    sender: Replica
    receiver: Replica
    moved_bytes: float
    total_bytes: float
    bytes_per_s: float
    layer: int | None
    """Which layer's is being moved, from 1; `None` where all are moved together."""

    @property
    def share(self) -> float:
        """What has been moved of the whole."""
        return self.moved_bytes / self.total_bytes if self.total_bytes else 1.0


class Fleet:
    """Goes from step end to step end, on whichever replica the next step ends, as a run does.

    In between, settings may change and requests may be added.
    """

    def __init__(self, experiment: Experiment, workload: Workload, requests: Iterator[Request]) -> None:
        """`requests`, the workload's and others, come in order of arrival. Raises what reading them does."""
        self.experiment = experiment
        self._workload, self._requests = workload, requests
        self._next = next(requests, None)
        self.setup = tuning.make_setup(experiment, workload)
        self.world = self._world_of(self.setup)
        self.replicas: list[Replica] = []
        pools = experiment.alone
        for pool, setup in enumerate(self.setup.pools):
            for _ in range(setup.num_replicas):
                stepper = self.world.replicas[len(self.replicas)]
                self.replicas.append(Replica(pools[pool], setup, stepper, pool))
        self._num_read = 0
        self._arrive()

    @property
    def now_s(self) -> float:
        """The instant of what happened last anywhere."""
        return float(self.world.records.clients.now)

    @property
    def is_staged(self) -> bool:
        """Whether some replicas compute prompts and others decode."""
        return self.setup.is_staged

    @property
    def next_arrival_s(self) -> float | None:
        """When the next request comes, seconds; `None` if none will."""
        self._look_ahead()
        records = self.world.records
        if records.clients.num_started == len(records.starts):
            return None
        return float(records.planned[records.starts[records.clients.num_started]].arrival_s)

    @property
    def is_over(self) -> bool:
        """Whether every request has ended and none will come."""
        return not (self.next_arrival_s is not None or self.world.records.clients.size or self.live)

    @property
    def held(self) -> list[Request]:
        """Requests that wait for a replica that takes them."""
        return [
            self.world.requests[ring[(router.first_held + place) % len(ring)]]
            for router, ring in zip(self.world.records.routers, self.world.records.held, strict=True)
            for place in range(router.num_held)
        ]

    @property
    def live(self) -> list[Request]:
        """Requests that have arrived and not ended."""
        return [*(request for replica in self.replicas for request in replica.live), *self.held]

    @property
    def score(self) -> Score:
        """The figures of all requests together, so far."""
        return score_of(self.world.requests, self.world.records.planned)

    @property
    def transfers(self) -> list[Transfer]:
        """What is on the link now, in the order in which it began."""
        link = self.world.records.link
        found = []
        for on_link in self.world.records.on_link[: link.num_transfers]:
            left = on_link.left_bytes - on_link.bytes_per_s * (self.now_s - link.now)
            extra = self.world.records.extras[on_link.request]
            # As the core has it: the last token's KV is what the first step there computes.
            total = (extra.num_external_tokens - 1) * link.bytes_per_token
            moved = min(max(total - left, 0.0), total)
            sender, receiver = (self.replicas[number] for number in (on_link.sender, on_link.receiver))
            request = self.world.requests[on_link.request]
            of = Transfer(request, sender, receiver, moved, total, on_link.bytes_per_s, None)
            if link.is_layered:
                of = of._replace(layer=min(int(of.share * link.num_layers) + 1, link.num_layers))
            found.append(of)
        return found

    def advance(self) -> bool:
        """Let the next step end, after idling until there is one; False if there is none.

        Raises `PluginError` for a scheduler or a cost model that does what it must not.
        """
        while (status := self._go_on()) != STEP_END:
            if status == DONE:
                return False
        clients = self.world.records.clients
        self.replicas[clients.replica].ended(clients.place)
        self._arrive()
        if self.is_over and not any(replica.stepper.under_way for replica in self.replicas):
            while self._go_on() != DONE:
                pass  # KV that has been fetched leaves its blocks.
        return True

    def add(self, request: Request) -> None:
        """A request arrives now; it is rejected if it could never be served."""
        self.world.plan(request, is_next=True)
        self._arrive()

    def become(self, experiment: Experiment) -> str:
        """Go on with other settings of the scheduler or another number of KV blocks; returns what changed.

        Limits change for those who run and wait; whatever else of the scheduler changes, it is another one:
        steps under way end, all are preempted, to be computed again, and queue at it. Raises `ConfigError`,
        and nothing has changed, for settings that can't change, for fewer blocks than are in use, and if a
        request that is here could never be served then.
        """
        pools = experiment.alone
        by_pool = [changes(old, new) for old, new in zip(self.experiment.alone, pools, strict=True)]
        changed = [changes(self.experiment, experiment), *by_pool]
        keys = (key for each in changed for key in each if not key.startswith("scheduler."))
        fixed = [key for key in dict.fromkeys(keys) if key not in (NUM_BLOCKS, "cluster.pools")]
        if fixed:
            raise ConfigError(*(f"{key}: can't change while it runs; name it in --set" for key in fixed))
        setup = tuning.make_setup(experiment, self._workload, [pool.cost for pool in self.setup.pools])
        for replica in self.replicas:
            tuning.check_fits(replica.stepper, setup.pools[replica.pool], replica.live)
        if all(each.keys() <= _LIVE_KEYS for each in by_pool):
            for replica in self.replicas:
                tuning.tune(replica.stepper, setup.pools[replica.pool], replica.present)
        else:
            if self.setup.is_staged or self.setup.changes is not None:
                key = min({key for each in by_pool for key in each} - _LIVE_KEYS, key=len)
                where = "between prefill and decode" if self.setup.is_staged else "where replicas come and go"
                raise ConfigError(f"{key}: can't change {where}; name it in --set")
            self._succeed(setup)
        self.experiment, self.setup = experiment, setup
        said = []
        for replica in self.replicas:
            replica.become(pools[replica.pool], setup.pools[replica.pool])
            if by_pool[replica.pool]:
                words = told(by_pool[replica.pool])
                brief = words.replace("scheduler ", "").replace("scheduler.", "").replace(" -> ", "→")
                replica.log.events.append(Event(self.now_s, -1, "changed", None, brief))
                said.append(f"{replica.setup.pool_name}: {words}" if experiment.cluster else words)
        return "; ".join(dict.fromkeys(said))

    def _succeed(self, setup: Setup) -> None:
        """Go on with another scheduler, on all replicas; nothing is between them."""
        records, before = self.world.records, self.world
        while ends := [replica for replica in self.replicas if replica.stepper.under_way]:
            ending = min(ends, key=lambda replica: replica.stepper.under_way[0].end_s)
            records.clients.now = ending.stepper.under_way[0].end_s
            while (at_s := before.bound(next_arrival_s)(records, NOBODY)) <= self.now_s:
                before.bound(arrive)(records, at_s)
                self._arrived()
            place = ending.stepper.under_way[0].place
            ending.stepper.end_step()
            ending.ended(place)
        self._read()
        self.world = self._world_of(setup)
        tuning.succeed(before, self.world)
        for replica, stepper in zip(self.replicas, self.world.replicas, strict=True):
            replica.stepper = stepper
            if stepper.num_outstanding:
                ask_at(stepper.records, self.now_s)
            take_turn(self.world.records, stepper.replica)
        self._read()

    def _go_on(self) -> int:
        """To the next thing that happens; returns what that is, as `feed.run` does."""
        self._look_ahead()
        records = self.world.records
        for router, ring in zip(records.routers, records.held, strict=True):
            if router.num_held + 1 >= len(ring):
                ring[:] = ring[router.first_held :] + ring[: router.first_held] + [0] * len(ring)
                router.first_held = 0
        status = int(self.world.bound(run)(records, NOBODY, inf))
        if status == ARRIVAL:
            self._arrived()
        if status == FAULT:
            fault = next(fault_of(own, self.now_s) for own in records.own if own.fault != layout.NO_FAULT)
            ids = np.array([request.request_id for request in self.world.requests], dtype=object)
            raise told_fault(fault, self.setup, ids) from fault
        self._read()
        return status

    def _look_ahead(self) -> None:
        """Plan the next request of the workload, if all that were planned have been sent."""
        records = self.world.records
        if self._next is not None and records.clients.num_started == len(records.starts):
            self.world.plan(self._next)
            self._next = next(self._requests, None)

    def _arrive(self) -> None:
        """Everybody who is due by now joins a queue."""
        self._look_ahead()
        while self.world.bound(next_arrival_s)(self.world.records, NOBODY) <= self.now_s:
            self._go_on()
            self._look_ahead()

    def _arrived(self) -> None:
        """A request has been sent, or comes to another replica: it gets its name."""
        request = self.world.requests[self.world.records.clients.num_sent - 1]
        request.request_id = self.world.records.planned[request.source].request_id
        if request.state == layout.REJECTED:
            self.replicas[max(request.replica, 0)].rejected(request, self.now_s)

    def _read(self) -> None:
        """Tell each replica's log what was written down since the last call."""
        log = self.world.records.log
        for row in log.events[self._num_read : log.lengths.events]:
            self.replicas[row.replica].log.take(row, self.world.requests[row.request])
        self._num_read = log.lengths.events

    def _world_of(self, setup: Setup) -> StepwiseWorld:
        def submit(replica: Any, request: Any, now: float) -> bool:
            accepted = submit_request(replica, request, now)
            if accepted:
                self.replicas[replica.own.replica].submitted(request)
            return accepted

        def call(replica: Any, cost: Any, now: float, one_by_one: bool) -> bool:
            has_decided = call_replica(replica, cost, now, one_by_one)
            if replica.own.fault == layout.NO_FAULT:
                self.replicas[replica.own.replica].decided(now)
            return has_decided

        def has_room(world: Any, num_transfers: int) -> bool:
            return True  # The log grows.

        watches: dict[str, Callable[..., Any]] = {"submit": submit, "call": call, "has_room": has_room}
        return stepwise(setup, is_planned=True, watches=watches)
