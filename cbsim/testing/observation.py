"""Observation: everything a scheduler was asked and answered in one simulation, seen from outside."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, cast

from cbsim.cluster.engine.engine_interface import Engine
from cbsim.cluster.engine.recorder import Recorder, RunLog
from cbsim.cluster.engine.reference import ReferenceEngine
from cbsim.cluster.router import RoundRobin
from cbsim.cluster.simpy_world import World
from cbsim.schedulers import Scheduler, StepPlan
from cbsim.schedulers.kvcache import IdentityPool
from cbsim.studies.run import collect
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


class Part(NamedTuple):
    """One request's share of a step, by name."""

    request_id: str
    num_tokens: int
    num_computed_tokens: int
    """Before the step, as the plan says."""
    emits: bool


@dataclass(frozen=True, slots=True)
class Call:
    """One call of `Scheduler.plan`: what it decided, and how everybody stood before and after."""

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
    """One call of `Scheduler.commit`: a step has ended."""

    step: int
    emitted: tuple[str, ...]
    finished: tuple[str, ...]
    num_blocks_used: int
    num_cached_free: int
    before: dict[str, Standing]
    after: dict[str, Standing]
    integrity: str | None


@dataclass(frozen=True, slots=True)
class Replica:
    """One replica's scheduler, and its calls and commits in the order they were made."""

    scheduler: Scheduler
    history: list[Call | Commit]

    @property
    def calls(self) -> list[Call]:
        """Its calls alone."""
        return [entry for entry in self.history if isinstance(entry, Call)]


@dataclass(frozen=True)
class History:
    """What happened to a case, perhaps not to its end."""

    case: Case
    replicas: list[Replica]

    @cached_property
    def requests(self) -> dict[str, Mapping[str, Any]]:
        """Request -> its row of the case."""
        return {row["request_id"]: row for row in self.case.requests}


@dataclass(frozen=True)
class Observation(History):
    """A case that has run to its end."""

    log: RunLog


class EndlessRun(Exception):
    """The scheduler is asked again and again and nothing comes of it."""


class BrokenOff(Exception):
    """A run that ended in an exception, its cause, with what was seen before."""

    def __init__(self, history: History, cause: Exception) -> None:
        self.history = history
        super().__init__(f"{type(cause).__name__}: {cause}")


def observe(scheduler_class: type[Scheduler], case: Case) -> Observation:
    """Run a case on the naive engine. Raises `BrokenOff` from whatever the scheduler raises."""
    max_calls = CALLS_PER_TOKEN * (case.num_tokens + 10)
    watches = [Watch(case.make_scheduler(scheduler_class), max_calls) for _ in range(case.num_replicas)]
    replicas = [Replica(watch.scheduler, watch.history) for watch in watches]
    try:
        log = _run(case, [cast("Scheduler", watch) for watch in watches], ReferenceEngine, with_batches=True)
    except Exception as error:
        raise BrokenOff(History(case, replicas), error) from error
    return Observation(case, replicas, log)


def run_case(scheduler_class: type[Scheduler], case: Case, engine_class: type[Engine]) -> RunLog:
    """Run a case unobserved, on any engine: a log without batches and without a row for each token.

    Raises `BrokenOff` from whatever the scheduler raises.
    """
    schedulers = [case.make_scheduler(scheduler_class) for _ in range(case.num_replicas)]
    try:
        return _run(case, schedulers, engine_class, with_batches=False)
    except Exception as error:
        raise BrokenOff(History(case, []), error) from error


def _run(
    case: Case, schedulers: Sequence[Scheduler], engine_class: type[Engine], *, with_batches: bool
) -> RunLog:
    recorder = Recorder(with_batches=with_batches)
    cost = case.make_cost_model()
    engines = [
        engine_class(replica, scheduler, cost, recorder, 2 if scheduler.config.async_scheduling else 1)
        for replica, scheduler in enumerate(schedulers)
    ]
    world = World(case.make_workload(), engines, RoundRobin())
    world.run()
    return collect(recorder, engines, world.end_s, is_closed_loop=case.concurrency is not None)


class Watch:
    """Stands before a scheduler and writes down every call and commit; all else goes through."""

    def __init__(self, scheduler: Scheduler, max_calls: int) -> None:
        self.scheduler = scheduler
        self.history: list[Call | Commit] = []
        self._max_calls = max_calls
        self._num_calls = 0
        self._steps: dict[int, int] = {}
        """Identity of a plan under way -> the number of its step."""
        self._num_steps = 0
        self._present: dict[str, Request] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.scheduler, name)

    def add(self, request: Request) -> None:
        """See `Scheduler.add`."""
        self._present[request.request_id] = request
        self.scheduler.add(request)

    def plan(self, now: float, *hidden: int) -> StepPlan:
        """See `Scheduler.plan`."""
        self._num_calls += 1
        if self._num_calls > self._max_calls:
            raise EndlessRun(f"{self._max_calls} calls, and these are still there: {list(self._present)}")
        before = self._standings()
        step = self.scheduler.plan(now, *hidden)
        number = -1
        if step.slices:
            number = self._steps[id(step)] = self._num_steps
            self._num_steps += 1
        self.history.append(
            Call(
                now=now,
                step=number,
                parts=tuple(
                    Part(part.request.request_id, part.num_tokens, part.num_computed_tokens, part.emits)
                    for part in step.slices
                ),
                decisions=tuple((what, request.request_id, n) for what, request, n in step.decisions),
                running=_ids(self.scheduler.running),
                waiting=_ids(self.scheduler.waiting),
                num_blocks_used=step.num_blocks_used,
                num_padding_tokens=step.num_padding_tokens,
                transfer_s=step.transfer_s,
                before=before,
                after=self._standings(),
                wake_at_s=self.scheduler.wake_at_s(),
                integrity=self._integrity(),
            )
        )
        return step

    def commit(self, step: StepPlan) -> list[Request]:
        """See `Scheduler.commit`."""
        before = self._standings()
        finished = self.scheduler.commit(step)
        pool = self.scheduler.pool
        self.history.append(
            Commit(
                step=self._steps.pop(id(step)),
                emitted=_ids(part.request for part in step.slices if part.emits),
                finished=_ids(finished),
                num_blocks_used=pool.num_used,
                num_cached_free=pool.num_cached_free if isinstance(pool, IdentityPool) else 0,
                before=before,
                after=self._standings(),
                integrity=self._integrity(),
            )
        )
        self._forget_released()
        return finished

    def _forget_released(self) -> None:
        """Static batches keep the blocks of their finished members until all are done."""
        ended = [
            name
            for name, request in self._present.items()
            if request.state is RequestState.FINISHED and request.num_blocks == 0
        ]
        for name in ended:
            del self._present[name]

    def _standings(self) -> dict[str, Standing]:
        return {
            name: Standing(
                request.state,
                request.num_computed_tokens,
                request.num_generated_tokens,
                request.num_blocks,
            )
            for name, request in self._present.items()
        }

    def _integrity(self) -> str | None:
        try:
            self.scheduler.pool.check_integrity(self._present.values())
        except RuntimeError as error:
            return str(error)
        return None


def _ids(requests: Iterable[Request]) -> tuple[str, ...]:
    return tuple(request.request_id for request in requests)
