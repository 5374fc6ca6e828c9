"""The SimPy world: arrivals, clients, routers and replicas on one clock."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import count
from typing import Protocol

import numpy as np
import simpy
from simpy.events import EventPriority

from cbsim.core import layout
from cbsim.core.stepping import Stepper
from cbsim.workload.request import Request, split_turns
from cbsim.workload.request_source import Workload
from cbsim.workload.streams import ThinkTimes

ROUTER_STREAM = 0x726F7574
"""Spawn key of the router's random stream."""


class Engine(Protocol):
    """What routers see of a replica."""

    @property
    def num_outstanding(self) -> int:
        """Requests submitted and not ended."""

    @property
    def num_blocks_used(self) -> int:
        """KV blocks held by requests."""


Router = Callable[[Request, Sequence[Engine]], int]
"""Gives the number of the replica that gets a request.

It sees the replicas as they stand at the instant of arrival, before any step that ends then; of several equal
ones it takes the first.
"""


def make_router(kind: int, seed: int) -> Router:
    """The router of a kind (`cbsim.core.layout`), where it needs no more than is seen here.

    Its random stream is spawned from the seed by purpose.
    """
    turns, homes = count(), dict[str, int]()
    random = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(ROUTER_STREAM,)))

    def least_outstanding(request: Request, engines: Sequence[Engine]) -> int:
        return min(range(len(engines)), key=lambda number: engines[number].num_outstanding)

    def least_kv(request: Request, engines: Sequence[Engine]) -> int:
        return min(range(len(engines)), key=lambda number: engines[number].num_blocks_used)

    def prefix_affinity(request: Request, engines: Sequence[Engine]) -> int:
        """Requests of one session, else with the same first prompt segment, stay together."""
        chosen = least_outstanding(request, engines)
        if request.session_id is not None:
            return homes.setdefault(f"session:{request.session_id}", chosen)
        return homes.setdefault(f"segment:{request.prompt[0][0]}", chosen) if request.prompt else chosen

    routers: dict[int, Router] = {
        layout.ROUND_ROBIN: lambda request, engines: next(turns) % len(engines),
        layout.RANDOM: lambda request, engines: int(random.integers(len(engines))),
        layout.LEAST_OUTSTANDING: least_outstanding,
        layout.LEAST_KV: least_kv,
        layout.PREFIX_AFFINITY: prefix_affinity,
    }
    return routers[kind]


ARRIVAL = EventPriority(1)
ANSWERED = EventPriority(2)
STEP_END = EventPriority(3)
CALL = EventPriority(4)
LAUNCH = EventPriority(5)
"""The order of one instant: arrivals join, those that waited for an answer last, the step that ends takes
effect, the next one is decided, ranks that work in step begin theirs."""

Progress = Callable[[int, float], None]
"""Called now and then with the number of requests that have arrived and the simulated time, seconds."""

PROGRESS_EVERY = 512


class Instant(simpy.Event):
    """An event at an absolute time, to the last bit, with its place in the order of that instant."""

    def __init__(self, env: simpy.Environment, at_s: float, priority: EventPriority) -> None:
        super().__init__(env)
        self._ok = True
        self._value = None
        env.schedule(self, priority, Until(at_s))


class Until(float):
    """A delay, as SimPy knows no others, that ends at an instant: no sum of floats leads to every instant."""

    def __radd__(self, now: float) -> float:
        return float(self)


class World:
    """Feeds a workload to replicas and runs them until all is done, or until `stop_at_s`."""

    def __init__(
        self,
        workload: Workload,
        engines: Sequence[Stepper],
        router: Router,
        *,
        stop_at_s: float | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.env = simpy.Environment()
        self.workload = workload
        self.engines = engines
        self.router = router
        self.stop_at_s = stop_at_s
        self.progress = progress
        self.now = 0.0
        """The instant of what happens, seconds; SimPy's own may be that of the next arrival."""
        self._num_arrived = 0
        self._is_closed_loop = workload.config.concurrency is not None
        self._think_times = ThinkTimes(workload.config, workload.seed)
        self._wake: dict[int, simpy.Event] = {}
        """Idle replica -> the event that an arrival sets off."""
        self._answered: dict[int, simpy.Event] = {}
        """Index of a request -> the event that tells its client that it has ended."""
        self._next_turns: dict[int, Request] = {}
        """By the identity of a request, the one that waits for its answer."""
        self._has_turns = False
        self._begun: dict[int, simpy.Event] = {}
        self._ended: dict[int, simpy.Event] = {}
        """First of the ranks that work in step -> the event that their steps begin, or end."""

    def run(self) -> None:
        """Run to the end."""
        requests = self._starts(self.workload.requests())
        for engine in self.engines:
            self.env.process(self._replica(engine))
        if self.workload.config.concurrency is None:
            self.env.process(self._arrivals(requests))
        else:
            for _ in range(self.workload.config.concurrency):
                self.env.process(self._client(requests))
        self.env.run(until=self.stop_at_s)

    def _starts(self, requests: Iterator[Request]) -> Iterator[Request]:
        """The requests that wait for no answer; the others are kept by those that they follow."""
        if self.workload.config.wait_for_answers is False:
            return requests
        starts, self._next_turns = split_turns(requests)
        self._has_turns = bool(self._next_turns)
        return iter(starts)

    def _arrivals(self, requests: Iterator[Request]) -> Generator[simpy.Event, None, None]:
        """Open loop: each request at its own time, and the turns that follow it when they are due."""
        for request in requests:
            if request.arrival_s > self.env.now:
                yield Instant(self.env, request.arrival_s, ARRIVAL)
            accepted = self._submit(request)
            if id(request) in self._next_turns:
                self.env.process(self._later_turns(request, accepted))

    def _client(self, requests: Iterator[Request]) -> Generator[simpy.Event, None, None]:
        """Closed loop: the next request when the last one has ended, after the think time."""
        for request in requests:
            request.arrival_s = self.env.now
            last = yield from self._later_turns(request, self._submit(request))
            due_s = self.env.now + self._think_times.after(last.index)
            if due_s > self.env.now:
                yield Instant(self.env, due_s, ARRIVAL)

    def _later_turns(self, request: Request, accepted: bool) -> Generator[simpy.Event, None, Request]:
        """Wait for the answer to a request, then send the turn that follows it, and so on; the last one."""
        while True:
            following = self._next_turns.pop(id(request), None)
            if following is None and not self._is_closed_loop:
                return request
            if accepted:
                answered = self._answered[request.index] = self.env.event()
                yield answered
            if following is None:
                return request
            due_s = self.env.now + following.delay_s
            if not self._is_closed_loop:
                yield Instant(self.env, max(due_s, following.arrival_s), ANSWERED)
            elif due_s > self.env.now:
                yield Instant(self.env, due_s, ARRIVAL)
            request, following.arrival_s = following, self.env.now
            accepted = self._submit(request)

    def _submit(self, request: Request) -> bool:
        request.index = self._num_arrived
        self._num_arrived += 1
        self.now = self.env.now
        if self.progress is not None and request.index % PROGRESS_EVERY == 0:
            self.progress(request.index, self.env.now)
        chosen = self.router(request, self.engines) if len(self.engines) > 1 else 0
        engine = self.engines[chosen]
        accepted = engine.submit(request)
        if accepted and chosen in self._wake:
            self._wake.pop(chosen).succeed()
        return accepted

    def _replica(self, engine: Stepper) -> Generator[simpy.Event, None, None]:
        """Decide when idle and something arrives, then go from step end to step end."""
        while True:
            yield self._until_asked(engine)
            if engine.num_ranks > 1:
                yield from self._until_ranks_end(engine)
            yield Instant(self.env, self.env.now, CALL)
            self.now = self.env.now
            engine.call(self.now)
            yield from self._until_ranks_begin(engine, self.now)
            while (end_s := engine.next_end_s) is not None:
                yield Instant(self.env, end_s, STEP_END)
                self.now = end_s
                if engine.first_rank in self._ended:
                    self._ended.pop(engine.first_rank).succeed()
                finished = engine.end_step()
                answered = [request for request in finished if request.index in self._answered]
                for request in answered:
                    self._answered.pop(request.index).succeed()
                if finished and (self._is_closed_loop or self._has_turns):
                    yield Instant(self.env, end_s, CALL)
                engine.call(end_s)
                yield from self._until_ranks_begin(engine, end_s)

    def _until_ranks_end(self, engine: Stepper) -> Generator[simpy.Event, None, None]:
        """A rank that was idle waits for the end of the step that others have under way."""
        first = engine.first_rank
        if any(
            rank.own.num_begun and not rank.is_held for rank in self.engines[first : first + engine.num_ranks]
        ):
            yield self._ended.setdefault(first, self.env.event())

    def _until_ranks_begin(self, engine: Stepper, now: float) -> Generator[simpy.Event, None, None]:
        """A rank that has decided a step waits until the others have decided, too."""
        if engine.num_ranks > 1 and engine.is_held:
            first = engine.first_rank
            begun = self._begun.setdefault(first, self.env.event())
            yield Instant(self.env, self.env.now, LAUNCH)
            if engine.is_held:
                engine.launch(now)
                self._begun.pop(first).succeed()
            yield begun

    def _until_asked(self, engine: Stepper) -> simpy.Event:
        """An event: the next arrival, or the instant at which the scheduler wants to be asked again."""
        wake = self._wake[engine.replica] = self.env.event()
        at_s = engine.wake_at_s()
        if at_s is None or at_s <= self.env.now:
            return wake
        return wake | Instant(self.env, at_s, CALL)
