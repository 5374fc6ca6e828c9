"""WatchedRun: an audience is told of a run of the core, compiled or interpreted, as it goes on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from functools import cache, partial
from typing import Any

import numpy as np

from cbsim.base.binding import Bound
from cbsim.base.records import LiveTable, live
from cbsim.core.feed import ARRIVAL, DECISION
from cbsim.core.layout import REJECTED, REQUEST, World, replica_of
from cbsim.core.replica_view import ReplicaView
from cbsim.core.stepping import StepwiseWorld, WatchedStepper
from cbsim.observers.audience import Audience
from cbsim.observers.views import StepView
from cbsim.workload.request import Request


class Teller:
    """Tells an audience what happens in a replica, each thing right after it has happened."""

    def __init__(self, audience: Audience, replica: ReplicaView) -> None:
        self.audience = audience
        self.replica = replica
        self._views: dict[int, StepView] = {}
        """What was shown of the steps under way, by their numbers."""

    def arrived(self, request: Request) -> None:
        """A request has joined the queue, or was rejected."""
        self.audience.tell("on_request_arrived", request.arrival_s, request, self.replica.replica)

    def decided(self, step: Any) -> None:
        """The scheduler has decided a `STEP`, which may have no slices and then does not begin."""
        if step.num_decisions:
            for what, request, _ in self.replica.decisions(step):
                self.audience.tell_event(what, step.now, request, self.replica.replica)

    def began(self, step: Any) -> None:
        """A step is under way, numbered and priced."""
        if self.audience.hears_steps:
            view = self._views[step.number] = self._view(step)
            self.audience.tell("before_step", step.now, view, self.replica.replica)

    def ended(self, step: Any, finished: Sequence[Request]) -> None:
        """A step has ended, and with it these requests."""
        tell, now, number = self.audience.tell, step.end_s, self.replica.replica
        if step.num_logits > step.num_decode_seqs:
            for request in self._first_tokens(step):
                tell("on_first_token", now, request, number)
        for request in finished:
            tell("on_finished", now, request, number)
        view = self._views.pop(step.number, None)
        if view is not None:
            view.start_s, view.duration_s = step.start_s, step.duration_s
            view.finished = finished
            view.make_slices = partial(self.replica.slices, step)
            tell("after_step", now, view, number)

    def _first_tokens(self, step: Any) -> list[Request]:
        """Who got a first token at the end of a step: some of those whose prompts were complete then."""
        parts = self.replica.records.slices[step.place][: step.num_slices]
        answered = [self.replica.requests[part.request] for part in parts if part.is_prefill and part.emits]
        return [request for request in answered if request.num_generated_tokens == 1]

    def _view(self, step: Any) -> StepView:
        preempted: list[Request] = []
        if step.num_preempted:
            preempted += [request for what, request, _ in self.replica.decisions(step) if what == "preempted"]
        return StepView(
            replica=self.replica.replica,
            number=step.number,
            scheduled_at_s=step.now,
            start_s=step.start_s,
            duration_s=step.duration_s,
            num_prefill_tokens=step.num_prefill_tokens,
            num_decodes=step.num_decode_seqs,
            num_new_tokens=step.num_logits,
            num_running=step.num_running,
            num_waiting=step.num_waiting,
            kv_blocks_used=step.kv_blocks_used,
            kv_blocks_total=self.replica.own.num_blocks,
            preempted=preempted,
            make_slices=partial(self.replica.slices, step),
        )


class ToldStepper(WatchedStepper):
    """A replica gone through step by step whose audience is told of all that happens in it."""

    def __init__(self, world: StepwiseWorld, number: int, audience: Audience) -> None:
        super().__init__(world, number)
        self.teller = Teller(audience, self)

    def submit(self, request: Request) -> bool:
        """See `Stepper.submit`."""
        is_accepted = super().submit(request)
        self.teller.arrived(request)
        return is_accepted

    def decided(self, step: Any) -> None:
        """See `WatchedStepper.decided`."""
        self.teller.decided(step)

    def began(self, step: Any) -> None:
        """See `WatchedStepper.began`."""
        self.teller.began(step)

    def end_step(self) -> list[Request]:
        """See `Stepper.end_step`."""
        step = self.under_way[0]
        finished = super().end_step()
        self.teller.ended(step, finished)
        return finished


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
        self._planned = list(requests) if len(world.turns) else None
        """Where requests wait for answers: all of them, in the order of the workload."""
        if self._is_compiled:
            self._coming = requests
            self._world = live(world)._replace(requests=LiveTable(world.requests, Request))
        else:
            self._world = world
            planned = self._planned
            # Rows of later visits have a request too: which one is known when they arrive.
            given = (
                requests
                if planned is None
                else (copy(planned[row % len(planned)]) for row in range(len(world.requests)))
            )
            # In place: those who run the world have this very list.
            world.requests[:] = map(_as_record, world.requests, given)
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
        number, last_call = clients.replica, step.call
        for request in [
            each for each in self._leaving if each.replica == number and each.last_call <= last_call
        ]:
            self._leaving.remove(request)
            del self._present[request.index]

    def _arrived(self, row: int) -> None:
        request: Request = self._world.requests[row]
        if self._is_compiled or self._planned is not None:
            given = next(self._coming) if self._planned is None else self._planned[request.source]
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
