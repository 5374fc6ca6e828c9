"""Search: how a capacity is searched for, by bracketing and bisection: the task of a worker."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cbsim.base.errors import CbsimError, ConfigError
from cbsim.results.slo import Slo
from cbsim.studies.experiment import Experiment
from cbsim.studies.intervals import CONFIDENCE
from cbsim.studies.probe import ProbeStore

FIRST_STEP = 8
"""Rungs from the first rate to the next; then the distance doubles until the SLO fails."""


@dataclass(slots=True)
class Bracket:
    """What each rung tried has shown, in one replicate or over all: by which margin the SLO held.

    The margin (`Slo.margin`, below 0 where it fails) is taken to fall as the rate rises; where chance has it
    otherwise, the lowest rate that fails counts.
    """

    bottom: int
    """The rung on which requests come one by one: the first that must be tried."""
    top: int
    """The rung on which they come all at once: the last worth trying."""
    margins: dict[int, float] = field(default_factory=dict)

    @property
    def fails_at(self) -> int | None:
        """The lowest rung known to fail."""
        return min((rung for rung, margin in self.margins.items() if margin < 0), default=None)

    @property
    def holds_at(self) -> int | None:
        """The highest rung known to hold, below any that fails."""
        fails_at = self.fails_at
        holding = (rung for rung, margin in self.margins.items() if margin >= 0)
        return max((rung for rung in holding if fails_at is None or rung < fails_at), default=None)

    def next_rung(self) -> int | None:
        """The rung to try next; `None` when neighbours hold and fail, or the ladder has no more to tell."""
        fails_at, holds_at = self.fails_at, self.holds_at
        if holds_at is None:
            return self.bottom if fails_at is None else None
        first = min(self.top, max(0, self.bottom + 1))
        if fails_at is None:
            if holds_at < first:
                return first
            return (
                min(self.top, holds_at + max(FIRST_STEP, holds_at - first)) if holds_at < self.top else None
            )
        if fails_at - holds_at == 1:
            return None
        middle = (fails_at + holds_at) // 2
        if holds_at > self.bottom:
            return middle
        return max(middle, fails_at - max(FIRST_STEP, first - fails_at))

    def crossing(self, rate_per_s: Callable[[int], float]) -> float | None:
        """The rate where the margin falls below 0, in between two rungs by linear interpolation.

        `None` if it held on every rung; the bottom's rate if it failed on every one. `rate_per_s` is the rate
        at a rung.
        """
        fails_at, holds_at = self.fails_at, self.holds_at
        if fails_at is None:
            return None
        if holds_at is None:
            return rate_per_s(fails_at)
        above, below = self.margins[holds_at], self.margins[fails_at]
        low, high = rate_per_s(holds_at), rate_per_s(fails_at)
        return low + (high - low) * above / (above - below)


ALONE_FACTOR = 1e-6
"""Times the rate: requests come one by one."""
ALONE_SPAN_S = 1e8
"""Longest span of arrivals one by one, some years: longer ones would have instants too coarse for steps."""
_ALONE_GAP = 100
"""Requests this many of the longest answer's time apart come one by one."""
_AT_ONCE = 0.01
"""Requests that all arrive within this share of a mean answer's time come all at once."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Share, replicates and resolution of a search; raises `ConfigError` for values out of range."""

    share: float | None = None
    """Share of requests that must keep their own limits; `None` for the SLO's own."""
    num_replicates: int = 5
    tolerance: float = 0.05
    """Neighbouring rates differ by this share; between them attainment is interpolated."""
    num_requests: int | None = None
    """Of a trace: requests of each replicate; `None` for as many as the trace has."""
    confidence: float = CONFIDENCE

    def __post_init__(self) -> None:
        checks = (
            (
                "share",
                self.share,
                0 < (0.5 if self.share is None else self.share) < 1,
                "a number > 0 and < 1",
            ),
            ("replicates", self.num_replicates, self.num_replicates >= 2, "an integer >= 2"),
            ("tolerance", self.tolerance, 0 < self.tolerance <= 1, "a number > 0 and <= 1"),
            ("requests", self.num_requests, (self.num_requests or 2) >= 2, "an integer >= 2"),
            ("confidence", self.confidence, 0 < self.confidence < 1, "a number > 0 and < 1"),
        )
        problems = [
            f"{name}: got {got}; expected {range_}" for name, got, is_ok, range_ in checks if not is_ok
        ]
        if problems:
            raise ConfigError(*problems)

    @property
    def growth(self) -> float:
        """From one rung of the ladder of rates to the next, the rate grows by this factor."""
        return 1 + self.tolerance


@dataclass(frozen=True, slots=True)
class SearchTask:
    """What one replicate of one contender is asked: its whole search, or some rungs more for the curve."""

    settings: Mapping[str, Any]
    """The experiment as resolved, with the replicate's seed."""
    rate_key: tuple[str, ...]
    """Where the setting that scales with the rate stands."""
    plan: Plan
    slo: Slo
    folder: Path | None = None
    """Where its runs' figures are kept; `None` keeps none."""
    rungs: tuple[int, ...] | None = None
    """The rungs to run; `None` for a search."""

    def at(self, factor: float, key: tuple[str, ...] | None = None) -> Experiment:
        """The experiment at `factor` times its rate, without observers: only its figures are kept."""
        settings = copy.deepcopy(dict(self.settings))
        settings.pop("observers", None)
        *way, last = key or self.rate_key
        section = settings
        for name in way:
            section = section[name]
        section[last] *= factor
        return Experiment.from_mapping(settings)

    def at_rung(self, rung: int) -> Experiment:
        """The experiment at a rung of the ladder."""
        return self.at(self.plan.growth**rung)


@dataclass(slots=True)
class SearchOutcome:
    """What came of a task: the figures at each rung, and for a search what its bracket says."""

    figures: dict[int, dict[str, Any]] = field(default_factory=dict)
    """By rung; see `Probe.figures`."""
    alone: dict[str, Any] = field(default_factory=dict)
    """The figures where requests come one by one."""
    bracket: Bracket | None = None
    manifest: dict[str, Any] = field(default_factory=dict)
    arrival_rate_per_s: float = 0.0
    """Of the requests at rung 0."""


def search(task: SearchTask) -> SearchOutcome:
    """Carry out a task; raises what its runs raise, and `CbsimError` for a workload without a rate."""
    outcome, probes = SearchOutcome(), ProbeStore(task.folder)
    if task.rungs is not None:
        outcome.figures = {rung: probes.run(task.at_rung(rung)).figures for rung in task.rungs}
        return outcome
    bracket = outcome.bracket = _open_bracket(task, outcome, probes)
    while (rung := bracket.next_rung()) is not None:
        figures = outcome.figures[rung] = probes.run(task.at_rung(rung)).figures
        bracket.margins[rung] = task.slo.margin(figures)
    return outcome


def _open_bracket(task: SearchTask, outcome: SearchOutcome, probes: ProbeStore) -> Bracket:
    """Runs requests one by one, which tells what a load can't better and where the ladder ends."""
    first = probes.run(task.at_rung(0))
    outcome.manifest, outcome.figures[0] = first.manifest, first.figures
    span_s, num_gaps = first.span_s, first.figures["num_requests"] - 1
    if not span_s:
        raise CbsimError("workload: all requests arrive at one instant; capacity needs a rate to vary")
    outcome.arrival_rate_per_s = num_gaps / span_s
    alone_factor = max(ALONE_FACTOR, span_s / ALONE_SPAN_S)
    alone = outcome.alone = probes.run(task.at(alone_factor, ("workload", "rate_scale"))).figures
    margin = task.slo.margin(alone)
    if alone["e2e_s.max"] is None:
        return Bracket(bottom=-1, top=1, margins={-1: margin})
    gap_s, log_growth = span_s / num_gaps, math.log(task.plan.growth)
    bottom = math.floor(math.log(gap_s / (_ALONE_GAP * alone["e2e_s.max"])) / log_growth)
    top = math.ceil(math.log(span_s / (_AT_ONCE * alone["e2e_s.mean"])) / log_growth)
    margins = {bottom: margin}
    if bottom < 0 < top and margin >= 0:
        margins[0] = task.slo.margin(first.figures)
    return Bracket(bottom, max(top, bottom + 1), margins)


def pooled_bracket(outcomes: Sequence[SearchOutcome], slo: Slo) -> Bracket:
    """The margin of a contender's mean figures over replicates, at every rung on which all of them have run.

    Its crossing is the capacity: the rate up to which the SLO holds for the mean of all replicates, where the
    curve that is shown leaves it. The mean of the replicates' own capacities is higher where attainment drops
    steeply, for at that rate the replicates that are beyond theirs miss far more than the others have to
    spare.
    """
    own = [outcome.bracket for outcome in outcomes if outcome.bracket is not None]
    bottom, top = min(each.bottom for each in own), max(each.top for each in own)
    shared = set.intersection(*(set(outcome.figures) for outcome in outcomes))
    runs = {bottom: [outcome.alone for outcome in outcomes]} | {
        rung: [outcome.figures[rung] for outcome in outcomes]
        for rung in sorted(shared)
        if bottom < rung <= top
    }
    margins = {rung: slo.margin(slo.mean_figures(figures)) for rung, figures in runs.items()}
    return Bracket(bottom, top, margins)


def complete_curves(
    contenders: Sequence[Sequence[str]],
    tasks: Mapping[str, SearchTask],
    found: Mapping[str, SearchOutcome],
    run_all: Callable[[Sequence[SearchTask]], Sequence[SearchOutcome]],
) -> None:
    """Run what the curves lack, until the capacity of each contender lies between neighbours of the ladder.

    A contender is the keys of its replicates' searches. In the end all of them have run at every rate that
    any of them tried. `found` is added to; `run_all` carries out tasks and gives the outcomes in their order.
    """
    while missing := _missing(contenders, tasks, found):
        more = [replace(tasks[key], rungs=tuple(sorted(rungs))) for key, rungs in missing.items()]
        for key, outcome in zip(missing, run_all(more), strict=True):
            found[key].figures |= outcome.figures


def _missing(
    contenders: Sequence[Sequence[str]],
    tasks: Mapping[str, SearchTask],
    found: Mapping[str, SearchOutcome],
) -> dict[str, set[int]]:
    """The rungs to run next, by search."""
    missing: dict[str, set[int]] = {}
    for keys in contenders:
        rungs = {rung for key in keys for rung in found[key].figures}
        if all(rungs == found[key].figures.keys() for key in keys):
            asked = pooled_bracket([found[key] for key in keys], tasks[keys[0]].slo).next_rung()
            rungs = rungs if asked is None else {*rungs, asked}
        for key in keys:
            if left := rungs - found[key].figures.keys():
                missing.setdefault(key, set()).update(left)
    return missing
