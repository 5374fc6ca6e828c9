"""The conformance check: every law over many cases, and over a scheduler of one's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from math import inf
from typing import Any, TypeVar

import numpy as np

from cbsim.base.binding import CannotCompile, can_compile
from cbsim.base.errors import PluginError
from cbsim.core.building import new_cluster, new_planned
from cbsim.results.run_log import EMITTED, Column, RunLog, distinct_gaps
from cbsim.schedulers import SCHEDULERS, Scheduler, SchedulerConfig
from cbsim.testing.case import Case, draw_case, starvation_case
from cbsim.testing.laws import HISTORY_LAWS, LOG_LAWS, Violation, nobody_starves
from cbsim.testing.observation import BrokenOff, EndlessRun, History, Observation, observe, run_case

Seen = TypeVar("Seen", bound=History)

MAX_REQUESTS_TOLD = 12
NUM_FIRST_TOLD = 3
"""Of a case of more than `MAX_REQUESTS_TOLD` requests, an error shows the first `NUM_FIRST_TOLD`."""


class ConformanceError(PluginError):
    """A scheduler broke a law: `law` names it, `case` shows it again, `step` is the first step that did.

    `step` is -1 where the breach can't be told by a step.
    """

    def __init__(self, scheduler: str, law: str, case: Case, step: int, detail: str) -> None:
        self.law = law
        self.case = case
        self.step = step
        self._told = (scheduler, law, case, step, detail)
        place = f" in step {step}" if step >= 0 else ""
        further = ", compiled=True" if law == "compiled_agrees" else ""
        super().__init__(
            f"scheduler '{scheduler}' breaks '{law}'{place}: {detail}; "
            f"to see it again: cbsim.testing.check_case({scheduler}, {_told_case(case, further)}"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._told


def check_scheduler(
    scheduler: type[Scheduler] | str,
    config: SchedulerConfig | Mapping[str, Any] | None = None,
    *,
    num_cases: int = 100,
    seed: int = 0,
    may_starve: bool = False,
    compiled: bool = True,
) -> None:
    """Raise `ConformanceError` for the first law that a scheduler, a class or a `type:` name, breaks.

    Settings in `config` are kept; limits that it leaves open are drawn small, so that they bind. Every law is
    checked on `num_cases` simulations drawn from `seed`, each run three times (see `check_case`);
    `nobody_starves` on a stream of rivals, unless the policy `may_starve` by intention (pure priority,
    shortest first). Whoever keeps all laws is then `compiled`, if numba is there and can, and must decide the
    same; that takes some 20 s at the first time.
    """
    scheduler_class = SCHEDULERS.get(scheduler) if isinstance(scheduler, str) else scheduler
    settings = config.model_dump() if isinstance(config, SchedulerConfig) else dict(config or {})
    settings.pop("type", None)
    generator = np.random.default_rng(seed)
    seen = []
    for _ in range(num_cases):
        case = draw_case(generator, scheduler_class.Config, settings)
        seen.append(check_case(scheduler_class, case))
    if all(len(each.log.rejections) == len(each.case.requests) for each in seen):
        raise ConformanceError(scheduler_class.__name__, "nobody_lost", case, -1, "every request is rejected")
    if not may_starve:
        case = starvation_case(scheduler_class.Config, settings)
        seen.append(check_case(scheduler_class, case))
        for violation in nobody_starves(seen[-1]):
            raise ConformanceError(scheduler_class.__name__, nobody_starves.__name__, case, *violation)
    if compiled and can_compile() and what_prevents_compiling(scheduler_class, case) is None:
        for each in seen:
            _check_same(scheduler_class, each, "compiled")


def check_case(scheduler_class: type[Scheduler], case: Case, *, compiled: bool = False) -> Observation:
    """Run one case step by step, check every law, and that further runs are the same. Returns what was seen.

    The first run is observed in the SimPy world. Two more run by the core alone, interpreted, and know all
    requests from the start; with `compiled` another, as numba compiles it.
    """
    name = scheduler_class.__name__
    with _breaches(name, case):
        seen = observe(scheduler_class, case)
    _check(name, HISTORY_LAWS, seen)
    _check(name, LOG_LAWS, seen)
    for engine in ("interpreted", "interpreted", "compiled")[: 2 + compiled]:
        _check_same(scheduler_class, seen, engine)
    return seen


def what_prevents_compiling(scheduler_class: type[Scheduler], case: Case) -> str | None:
    """Why numba can't compile the core with a scheduler's rules, with file and line; `None` if it can."""
    setup = case.make_setup(scheduler_class)
    rules = setup.cost.rules()
    assert rules is not None
    bound = setup.core(rules.step_s)
    parts = setup.parts(1, bound.names(), with_formula=False, foresees=False)
    world = new_cluster(new_planned(1), [parts], [setup.router])
    try:
        bound.compiled.prepare(world, 1, inf)
    except CannotCompile as error:
        return str(error)
    return None


def _check_same(scheduler_class: type[Scheduler], seen: Observation, engine: str) -> None:
    """Raise `ConformanceError` if a run that nobody watches differs from the one that was seen."""
    with _breaches(scheduler_class.__name__, seen.case):
        log = run_case(scheduler_class, seen.case, engine)
    law = "compiled_agrees" if engine == "compiled" else "deterministic"
    for line in differences(without_batches(seen.log), log):
        detail = f"another run, {engine}, differs: {line}"
        raise ConformanceError(scheduler_class.__name__, law, seen.case, -1, detail)


@contextmanager
def _breaches(scheduler: str, case: Case) -> Iterator[None]:
    """What breaks a run off becomes a `ConformanceError`."""
    try:
        yield
    except BrokenOff as error:
        # What went wrong before it tells more than the exception that came of it.
        _check(scheduler, HISTORY_LAWS, error.history)
        law = "comes_to_an_end" if isinstance(error.__cause__, EndlessRun) else "raises_nothing"
        raise ConformanceError(scheduler, law, case, -1, str(error)) from error.__cause__


def _check(scheduler: str, laws: Mapping[str, Callable[[Seen], Iterator[Violation]]], seen: Seen) -> None:
    for name, law in laws.items():
        for violation in law(seen):
            raise ConformanceError(scheduler, name, seen.case, *violation)


def _told_case(case: Case, further: str) -> str:
    """The end of a call with the case: as code, or, of many requests, where it is and what it begins with."""
    if len(case.requests) <= MAX_REQUESTS_TOLD:
        return f"{case!r}{further})"
    first = replace(case, requests=case.requests[:NUM_FIRST_TOLD])
    return f"error.case{further}), which has {len(case.requests)} requests and begins as {first!r}"


def without_batches(log: RunLog) -> RunLog:
    """The log as it is where batches are not recorded: without them, and without a row for each token."""
    kept = log.events["event"] != EMITTED
    return replace(log, batches=None, events={name: column[kept] for name, column in log.events.items()})


def differences(one: RunLog, other: RunLog) -> list[str]:
    """Where two logs differ, one line a column or count; empty if they are equal to the last bit.

    Slices, which may be cut differently, are compared by what follows from them: the parts of latencies.
    """
    others = _parts(other)
    return [line for name, part in _parts(one).items() for line in _differences(name, part, others[name])]


def _parts(log: RunLog) -> dict[str, Any]:
    parts: dict[str, Any] = {}
    for entry in fields(RunLog):
        if entry.name == "gaps":
            parts["gap_s"], parts["gap_count"] = distinct_gaps(log.gaps)
        elif entry.name != "slices":
            parts[entry.name] = getattr(log, entry.name)
    return parts


def _differences(name: str, one: Any, other: Any) -> list[str]:
    if isinstance(one, Mapping) and isinstance(other, Mapping) and name != "rejections":
        if set(one) != set(other):
            return [f"{name}: columns {sorted(one)} and {sorted(other)}"]
        return [line for key in one for line in _differences(f"{name}.{key}", one[key], other[key])]
    if not (isinstance(one, np.ndarray) and isinstance(other, np.ndarray)):
        return [] if one == other else [f"{name}: {one} and {other}"]
    if one.dtype != other.dtype or one.shape != other.shape:
        return [f"{name}: {one.dtype} {one.shape} and {other.dtype} {other.shape}"]
    unequal = np.flatnonzero(_bits(one) != _bits(other))
    if not len(unequal):
        return []
    row = int(unequal[0])
    return [f"{name}: {len(unequal)} of {len(one)} rows, first row {row}: {one[row]} and {other[row]}"]


def _bits(column: Column) -> Column:
    """Values that are equal where all bits are; objects as they are."""
    if column.dtype == object:
        return column
    return np.ascontiguousarray(column).view(f"V{column.dtype.itemsize}")
