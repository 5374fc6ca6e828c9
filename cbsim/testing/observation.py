"""Observation: everything a scheduler was asked and answered in one simulation, seen from outside."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from operator import attrgetter
from typing import Any, NamedTuple

from cbsim.base.errors import told_in_one_line
from cbsim.core import layout, loop
from cbsim.core.stepping import Stepper, StepwiseWorld
from cbsim.results.run_log import RunLog
from cbsim.schedulers import Scheduler
from cbsim.studies.core_log import stepwise_log
from cbsim.studies.setup import Setup
from cbsim.studies.simulation import simulate_core, step_through, stepwise
from cbsim.testing.case import Case
from cbsim.workload.request import Request, RequestState

CALLS_PER_TOKEN = 50
"""A run that needs more calls than this for each of its tokens gets nowhere."""


class Standing(NamedTuple):
    """How far a request stands at one moment."""

    state: RequestState
    num_computed_tokens: int
    num_generated_tokens: int
    num_blocks: int


_progress = attrgetter(*Standing._fields[1:])
"""A request's numbers in a `Standing`."""


class Part(NamedTuple):
    """One request's share of a step, by name."""

    request_id: str
    num_tokens: int
    num_computed_tokens: int
    """Before the step, as the plan says."""
    emits: bool
    is_prefill: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a scheduler: what it decided, and how everybody stood before and after."""

    now: float
    step: int
    """Number of the step it made; -1 for none."""
    parts: tuple[Part, ...]
    decisions: tuple[tuple[str, str, int], ...]
    """`(admitted | resumed | preempted, request, prefix-cache tokens)` in the order decided."""
    running: tuple[str, ...]
    waiting: tuple[str, ...]
    num_blocks_used: int
    num_padding_tokens: int
    transfer_s: float
    before: dict[str, Standing]
    after: dict[str, Standing]
    wake_at_s: float | None
    integrity: str | None
    """What is wrong with the block pool, `None` if nothing is."""

    def decided(self, decision: str) -> dict[str, int]:
        """The requests that were `admitted`, `resumed` or `preempted`, with their prefix-cache tokens."""
        return {name: num_cached for what, name, num_cached in self.decisions if what == decision}


@dataclass(frozen=True, slots=True)
class Commit:
    """A step has ended."""

    step: int
    emitted: tuple[str, ...]
    finished: tuple[str, ...]
    num_blocks_used: int
    num_cached_free: int
    before: dict[str, Standing]
    after: dict[str, Standing]
    integrity: str | None


@dataclass(frozen=True)
class History:
    """What happened to a case, perhaps not to its end."""

    case: Case
    replicas: list[Replica]

    @cached_property
    def requests(self) -> dict[str, Mapping[str, Any]]:
        """Request -> its row of the case."""
        return {row["request_id"]: row for row in self.case.requests}

    @property
    def calls(self) -> Iterator[tuple[Replica, Call]]:
        """Every call of every replica's scheduler, one replica after the other."""
        return ((replica, call) for replica in self.replicas for call in replica.calls)


@dataclass(frozen=True)
class Observation(History):
    """A case that has run to its end."""

    log: RunLog


class EndlessRun(Exception):
    """The scheduler is asked again and again and nothing comes of it."""


class BrokenOff(Exception):
    """A run that ended in an exception, its cause, with what was seen before.

    `module` is that of the scheduler, of which the line is told.
    """

    def __init__(self, history: History, cause: Exception, module: str) -> None:
        self.history = history
        super().__init__(told_in_one_line(cause, module))


def observe(scheduler_class: type[Scheduler], case: Case) -> Observation:
    """Run a case step by step in the SimPy world, and write down all that can be seen.

    Raises `BrokenOff` from whatever the scheduler raises, `PluginError` for rules that can't be ones.
    """
    return observe_setup(case.make_setup(scheduler_class, with_batches=True), case)


def observe_setup(setup: Setup, case: Case, *, step_s: Callable[..., float] | None = None) -> Observation:
    """The same for a setup made from the case and changed; `step_s` as for `stepwise`."""
    replicas: list[Replica] = []

    def make_replica(world: StepwiseWorld, number: int) -> Replica:
        replicas.append(Replica(world, number, replicas, CALLS_PER_TOKEN * (case.num_tokens + 10)))
        return replicas[-1]

    world = stepwise(setup, step_s=step_s, make_replica=make_replica)
    with _broken_off(History(case, replicas), setup.rung):
        step_through(world, setup, passes=(Exception,))
    return Observation(case, replicas, stepwise_log(world, setup))


def run_case(scheduler_class: type[Scheduler], case: Case, engine: str = "interpreted") -> RunLog:
    """Run a case unobserved: a log without batches and without a row for each token.

    `engine` is `interpreted` or `compiled`; what can't be compiled is interpreted all the same. Raises
    `BrokenOff` from whatever the scheduler raises.
    """
    setup = case.make_setup(scheduler_class)
    with _broken_off(History(case, []), scheduler_class):
        log, _, _ = simulate_core(setup, engine)
    return log


@contextmanager
def _broken_off(history: History, scheduler_class: type[Scheduler]) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise BrokenOff(history, error, scheduler_class.__module__) from error


class Replica(Stepper):
    """One replica that writes down every call of its scheduler and every end of a step, in their order."""

    def __init__(self, world: StepwiseWorld, number: int, peers: list[Replica], max_calls: int) -> None:
        """`peers` are all replicas of the run, which has `max_calls` calls of schedulers at most."""
        super().__init__(world, number)
        self.history: list[Call | Commit] = []
        self._peers, self._max_calls = peers, max_calls
        self._num_calls = 0
        self._here: dict[str, Request] = {}
        """Its requests until nothing of them is left."""

    @property
    def calls(self) -> list[Call]:
        """The calls of its history."""
        return [entry for entry in self.history if isinstance(entry, Call)]

    def watches(self) -> dict[str, Callable[..., Any]]:
        """See `Stepper.watches`: what every call brought, and what it cost."""
        plan, begin = self.world.bound(loop.plan), self.world.bound(loop.begin)

        def watched_plan(records: Any, step: Any, place: Any, now: Any) -> None:
            self._count_call()
            before = self._standings()
            plan(records, step, place, now)
            if records.own.fault == layout.NO_FAULT:
                self.history.append(self._planned(step, now, before))

        def watched_begin(records: Any, cost: Any, step: Any) -> None:
            begin(records, cost, step)
            call = self.history[-1]
            assert isinstance(call, Call)
            self.history[-1] = replace(
                call, num_padding_tokens=step.num_padding_tokens, transfer_s=step.transfer_s
            )

        return {"plan": watched_plan, "begin": watched_begin}

    def submit(self, request: Request) -> bool:
        """See `Stepper.submit`."""
        is_accepted = super().submit(request)
        if is_accepted:
            self._here[request.request_id] = request
        return is_accepted

    def end_step(self) -> list[Request]:
        """See `Stepper.end_step`."""
        before, step = self._standings(), self.under_way[0]
        finished = super().end_step()
        commit = Commit(
            step=step.number,
            emitted=_ids(part.request for part in self.slices(step) if part.emits),
            finished=_ids(finished),
            num_blocks_used=self.num_blocks_used,
            num_cached_free=self.own.num_cached_free,
            before=before,
            after=self._standings(),
            integrity=self._integrity(),
        )
        self.history.append(commit)
        # Static batches keep the blocks of their finished members until all are done.
        for name, request in list(self._here.items()):
            if request.state == RequestState.FINISHED and request.num_blocks == 0:
                del self._here[name]
        return finished

    def _count_call(self) -> None:
        self._num_calls += 1
        if sum(peer._num_calls for peer in self._peers) > self._max_calls:
            present = [name for peer in self._peers for name in peer._here]
            raise EndlessRun(f"{self._max_calls} calls, and these are still there: {present}")

    def _planned(self, step: Any, now: float, before: dict[str, Standing]) -> Call:
        parts = (
            Part(
                part.request.request_id,
                part.num_tokens,
                part.num_computed_tokens,
                part.emits,
                part.is_prefill,
            )
            for part in self.slices(step)
        )
        return Call(
            now=now,
            step=self.own.num_steps if step.num_slices else -1,
            parts=tuple(parts),
            decisions=tuple((what, request.request_id, n) for what, request, n in self.decisions(step)),
            running=_ids(self.running),
            waiting=self._queue(now),
            num_blocks_used=step.kv_blocks_used,
            num_padding_tokens=0,
            transfer_s=0.0,
            before=before,
            after=self._standings(),
            wake_at_s=self.wake_at_s(),
            integrity=self._integrity(),
        )

    def _queue(self, now: float) -> tuple[str, ...]:
        """Who really stands in the queue: those that wait in their order, then any that should not."""
        nodes = self.records.nodes
        queued = {name for name, request in self._here.items() if nodes[request.index].is_in}
        ordered = _ids(self.waiting(now))
        return (*(name for name in ordered if name in queued), *queued.difference(ordered))

    def _standings(self) -> dict[str, Standing]:
        return {
            name: Standing(RequestState(request.state), *_progress(request))
            for name, request in self._here.items()
        }

    def _integrity(self) -> str | None:
        try:
            self.check_integrity()
        except RuntimeError as error:
            return str(error)
        return None


def _ids(requests: Iterable[Request]) -> tuple[str, ...]:
    return tuple(request.request_id for request in requests)
