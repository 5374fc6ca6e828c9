"""Observation: everything a scheduler was asked and answered in one simulation, seen from outside."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf
from typing import Any, NamedTuple

from cbsim.base.plugin_errors import told_in_one_line
from cbsim.cluster.router import RoundRobin
from cbsim.cluster.simpy_world import World
from cbsim.core import layout, loop
from cbsim.core.driver import RuleFault
from cbsim.core.stepping import Stepper, StepwiseWorld
from cbsim.results.run_log import RunLog
from cbsim.schedulers import Scheduler
from cbsim.studies.simulation import Setup, simulate_core, stepwise, stepwise_log, told_fault
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


@dataclass(frozen=True, slots=True)
class Replica:
    """One replica, and the calls of its scheduler and the ends of its steps in their order."""

    stepper: Stepper
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
    watch = Watch(setup, CALLS_PER_TOKEN * (case.num_tokens + 10))
    world = stepwise(setup, step_s=step_s, watches=watch.functions(step_s))
    watch.follow(world)
    history = History(case, watch.replicas)
    with _broken_off(history, setup.rung):
        try:
            World(setup.workload, world.replicas, RoundRobin()).run()
        except RuleFault as fault:
            raise told_fault(fault, setup, [request.request_id for request in world.requests]) from fault
    return Observation(case, watch.replicas, stepwise_log(world, setup))


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


class Watch:
    """Stands before the core's functions of each replica, and writes down what every call brought."""

    def __init__(self, setup: Setup, max_calls: int) -> None:
        self.replicas: list[Replica] = []
        self._setup = setup
        self._max_calls = max_calls
        self._num_calls = 0
        self._present: list[dict[str, Request]] = []
        """Of each replica: its requests until nothing of them is left."""

    def follow(self, world: StepwiseWorld) -> None:
        """The world whose functions are watched."""
        self.replicas += [Replica(stepper, []) for stepper in world.replicas]
        self._present += [{} for _ in world.replicas]

    def functions(self, step_s: Callable[..., float] | None) -> dict[str, Callable[..., Any]]:
        """What stands for functions of the core: `watches` of `stepwise`."""
        unwatched = stepwise(self._setup, step_s=step_s)
        submit_, plan_ = unwatched.bound(loop.submit), unwatched.bound(loop.plan)
        begin_ = unwatched.bound(loop.begin)
        end_step_, wake_at_s_ = unwatched.bound(loop.end_step), unwatched.bound(loop.wake_at_s)

        def submit(records: Any, request: Any) -> Any:
            is_accepted = submit_(records, request)
            if is_accepted:
                self._present[records.own.replica][request.request_id] = request
            return is_accepted

        def plan(records: Any, step: Any, place: Any, now: Any) -> None:
            number = records.own.replica
            self._count_call()
            before = self._standings(number)
            plan_(records, step, place, now)
            if records.own.fault == layout.NO_FAULT:
                self._planned(number, step, now, before, wake_at_s_(records))

        def begin(records: Any, cost: Any, step: Any) -> None:
            begin_(records, cost, step)
            history = self.replicas[records.own.replica].history
            call = history[-1]
            assert isinstance(call, Call)
            history[-1] = replace(
                call, num_padding_tokens=step.num_padding_tokens, transfer_s=step.transfer_s
            )

        def end_step(records: Any) -> Any:
            number = records.own.replica
            before, step = self._standings(number), self.replicas[number].stepper.under_way[0]
            num_finished = end_step_(records)
            self._ended(number, step, records.candidates[:num_finished], before)
            return num_finished

        return {"submit": submit, "plan": plan, "begin": begin, "end_step": end_step}

    def _count_call(self) -> None:
        self._num_calls += 1
        if self._num_calls > self._max_calls:
            present = [name for requests in self._present for name in requests]
            raise EndlessRun(f"{self._max_calls} calls, and these are still there: {present}")

    def _planned(
        self, number: int, step: Any, now: float, before: dict[str, Standing], wake_at_s: float
    ) -> None:
        replica = self.replicas[number]
        stepper = replica.stepper
        replica.history.append(
            Call(
                now=now,
                step=stepper.own.num_steps if step.num_slices else -1,
                parts=tuple(
                    Part(
                        part.request.request_id,
                        part.num_tokens,
                        part.num_computed_tokens,
                        part.emits,
                        part.is_prefill,
                    )
                    for part in stepper.slices(step)
                ),
                decisions=tuple(
                    (what, request.request_id, n) for what, request, n in stepper.decisions(step)
                ),
                running=_ids(stepper.running),
                waiting=_ids(self._queue(number, now)),
                num_blocks_used=step.kv_blocks_used,
                num_padding_tokens=0,
                transfer_s=0.0,
                before=before,
                after=self._standings(number),
                wake_at_s=None if wake_at_s == inf else wake_at_s,
                integrity=self._integrity(number),
            )
        )

    def _ended(self, number: int, step: Any, finished: list[int], before: dict[str, Standing]) -> None:
        replica, present = self.replicas[number], self._present[number]
        stepper = replica.stepper
        replica.history.append(
            Commit(
                step=step.number,
                emitted=_ids(part.request for part in stepper.slices(step) if part.emits),
                finished=_ids(stepper.world.requests[index] for index in finished),
                num_blocks_used=stepper.num_blocks_used,
                num_cached_free=stepper.own.num_cached_free,
                before=before,
                after=self._standings(number),
                integrity=self._integrity(number),
            )
        )
        # Static batches keep the blocks of their finished members until all are done.
        for name in [name for name, request in present.items() if _is_gone(request)]:
            del present[name]

    def _queue(self, number: int, now: float) -> list[Request]:
        """Who really stands in the queue: those that wait in their order, then any that should not."""
        nodes = self.replicas[number].stepper.records.nodes
        queued = {
            name: request for name, request in self._present[number].items() if nodes[request.index].is_in
        }
        ordered = {each.request_id: each for each in self.replicas[number].stepper.waiting(now)}
        return [queued[name] for name in (*ordered, *(queued.keys() - ordered.keys())) if name in queued]

    def _standings(self, number: int) -> dict[str, Standing]:
        return {
            name: Standing(
                RequestState(request.state),
                request.num_computed_tokens,
                request.num_generated_tokens,
                request.num_blocks,
            )
            for name, request in self._present[number].items()
        }

    def _integrity(self, number: int) -> str | None:
        try:
            self.replicas[number].stepper.check_integrity()
        except RuntimeError as error:
            return str(error)
        return None


def _is_gone(request: Request) -> bool:
    return request.state == RequestState.FINISHED and request.num_blocks == 0


def _ids(requests: Iterable[Request]) -> tuple[str, ...]:
    return tuple(request.request_id for request in requests)
