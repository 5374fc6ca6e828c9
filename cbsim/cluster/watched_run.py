"""WatchedRun: an audience is told of a run of the core, compiled or interpreted, as it goes on."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np

from cbsim.base.binding import Bound
from cbsim.base.records import LiveTable, live
from cbsim.cluster.told import Teller
from cbsim.core.feed import ARRIVAL, DECISION
from cbsim.core.layout import REJECTED, REQUEST, World, replica_of
from cbsim.core.replica_view import ReplicaView
from cbsim.observers.audience import Audience
from cbsim.workload.request import Request

KEPT = REQUEST.names or ()
"""What the core keeps of a request."""
BESIDE = tuple(name for name in Request.__slots__ if name not in KEPT)
"""And what it does not, such as its name."""


class WatchedRun:
    """Tells an audience what the core returns for.

    Requests are the same objects from their arrival on, and show at any instant what the core knows of them:
    interpreted, they are its records; compiled, they read those.
    """

    def __init__(
        self,
        world: World,
        requests: Iterator[Request],
        audience: Audience,
        bound: Bound,
    ) -> None:
        """`requests` are those of the workload in order of arrival; `bound` is what runs."""
        self._present: dict[int, Request] = {}
        """By row, requests that have arrived and not left."""
        self._leaving: list[Request] = []
        """Those that have ended while steps with them are under way."""
        self._is_compiled = isinstance(world.requests, np.ndarray)
        if self._is_compiled:
            self._coming = requests
            self._world = live(world)._replace(requests=LiveTable(world.requests, Request))
        else:
            self._world = world
            # In place: those who run the world have this very list.
            world.requests[:] = map(_as_record, world.requests, requests)
        self.replicas = [
            ReplicaView(
                replica_of(self._world, number),
                self._present,
                self._present.values,
                lambda: self._world.clients.now,
                cache(lambda function: bound.other(function).interpreted),
            )
            for number in range(len(self._world.own))
        ]
        self._tellers = [Teller(audience, replica) for replica in self.replicas]

    def tell(self, status: int) -> None:
        """What `feed.run` has returned for, if it is `ARRIVAL`, `DECISION` or `STEP_END`."""
        clients = self._world.clients
        if status == ARRIVAL:
            self._arrived(clients.num_sent - 1)
            return
        teller = self._tellers[clients.replica]
        step = teller.replica.records.under_way[clients.place]
        if status == DECISION:
            teller.decided(step)
            if step.num_slices:
                teller.began(step)
            return
        log = self._world.log
        num_finished = log.steps[log.lengths.steps - 1].num_finished
        finished = [self._present[row] for row in teller.replica.records.candidates[:num_finished]]
        teller.ended(step, finished)
        self._leaving += finished
        # Steps under way may hold requests that have ended.
        for request in [each for each in self._leaving if each.num_steps_in_flight == 0]:
            self._leaving.remove(request)
            del self._present[request.index]

    def _arrived(self, row: int) -> None:
        request: Request = self._world.requests[row]
        if self._is_compiled:
            given = next(self._coming)
            for name in BESIDE:
                setattr(request, name, getattr(given, name))
        self._present[row] = request
        self._tellers[request.replica].arrived(request)
        if request.state == REJECTED:
            del self._present[row]


def _as_record(record: Any, request: Request) -> Request:
    """The request with all that the core knows of it."""
    for name in KEPT:
        setattr(request, name, getattr(record, name))
    return request
