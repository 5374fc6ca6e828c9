"""The conformance check: every law over many cases, and over a scheduler of one's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from cbsim.base.errors import PluginError
from cbsim.cluster.engine.fast import FastEngine
from cbsim.cluster.engine.reference import ReferenceEngine
from cbsim.schedulers import SCHEDULERS, Scheduler, SchedulerConfig
from cbsim.testing.case import Case, draw_case, starvation_case
from cbsim.testing.identity import differences, without_batches
from cbsim.testing.laws import HISTORY_LAWS, LOG_LAWS, Violation, nobody_starves
from cbsim.testing.observation import BrokenOff, EndlessRun, History, Observation, observe, run_case

Seen = TypeVar("Seen", bound=History)

MAX_REQUESTS_TOLD = 12
"""A case of more requests isn't shown whole in an error's message."""
NUM_FIRST_TOLD = 3
"""So many are shown of it."""


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
        super().__init__(
            f"scheduler '{scheduler}' breaks '{law}'{place}: {detail}; "
            f"to see it again: cbsim.testing.check_case({scheduler}, {_told_case(case)}"
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
) -> None:
    """Raise `ConformanceError` for the first law that a scheduler, a class or a `type:` name, breaks.

    Settings in `config` are kept; limits that it leaves open are drawn small, so that they bind. Every law is
    checked on `num_cases` simulations drawn from `seed`, each run three times (see `check_case`);
    `nobody_starves` on a stream of rivals, unless the policy `may_starve` by intention (pure priority,
    shortest first).
    """
    scheduler_class = SCHEDULERS.get(scheduler) if isinstance(scheduler, str) else scheduler
    settings = _settings(config)
    generator = np.random.default_rng(seed)
    num_served = 0
    for _ in range(num_cases):
        case = draw_case(generator, scheduler_class.Config, settings)
        num_served += len(case.requests) - len(check_case(scheduler_class, case).log.rejections)
    if not num_served:
        raise ConformanceError(scheduler_class.__name__, "nobody_lost", case, -1, "every request is rejected")
    if not may_starve:
        case = starvation_case(scheduler_class.Config, settings)
        seen = check_case(scheduler_class, case)
        for violation in nobody_starves(seen):
            raise ConformanceError(scheduler_class.__name__, nobody_starves.__name__, case, *violation)


def check_case(scheduler_class: type[Scheduler], case: Case) -> Observation:
    """Run one case on the naive engine, check every law, and that further runs are the same.

    The second is unobserved, the third on the fast engine. Returns what was seen.
    """
    name = scheduler_class.__name__
    try:
        seen = observe(scheduler_class, case)
        runs = {
            "deterministic": run_case(scheduler_class, case, ReferenceEngine),
            "fast_engine_agrees": run_case(scheduler_class, case, FastEngine),
        }
    except BrokenOff as error:
        # What went wrong before it tells more than the exception that came of it.
        _check(name, HISTORY_LAWS, error.history)
        law = "comes_to_an_end" if isinstance(error.__cause__, EndlessRun) else "raises_nothing"
        raise ConformanceError(name, law, case, -1, str(error)) from error.__cause__
    _check(name, HISTORY_LAWS, seen)
    _check(name, LOG_LAWS, seen)
    for law, log in runs.items():
        for line in differences(without_batches(seen.log), log):
            raise ConformanceError(name, law, case, -1, f"another run differs: {line}")
    return seen


def _check(scheduler: str, laws: Mapping[str, Callable[[Seen], Iterator[Violation]]], seen: Seen) -> None:
    for name, law in laws.items():
        for violation in law(seen):
            raise ConformanceError(scheduler, name, seen.case, *violation)


def _told_case(case: Case) -> str:
    """The end of a call with the case: as code, or, of many requests, where it is and what it begins with."""
    if len(case.requests) <= MAX_REQUESTS_TOLD:
        return f"{case!r})"
    first = replace(case, requests=case.requests[:NUM_FIRST_TOLD])
    return f"error.case), which has {len(case.requests)} requests and begins as {first!r}"


def _settings(config: SchedulerConfig | Mapping[str, Any] | None) -> dict[str, Any]:
    if config is None:
        return {}
    settings = config.model_dump() if isinstance(config, SchedulerConfig) else dict(config)
    settings.pop("type", None)
    return settings
