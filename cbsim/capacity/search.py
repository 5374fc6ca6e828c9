"""CapacitySearch: one replicate of one contender, run at rate after rate; the task that workers are given."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cbsim.capacity.bracket import Bracket
from cbsim.errors import CbsimError
from cbsim.experiment import Experiment
from cbsim.metrics import flatten
from cbsim.result import Result
from cbsim.run import run_experiment

ALONE_FACTOR = 1e-6
"""Times the rate: requests come one by one."""
NUM_QUARTERS = 4
_ALONE_GAP = 100
"""Requests this many of the longest answer's time apart come one by one."""
_AT_ONCE = 0.01
"""Requests that all arrive within this share of a mean answer's time come all at once."""


@dataclass(frozen=True, slots=True)
class SearchTask:
    """What one replicate of one contender is asked: its whole search, or some rungs more for the curve."""

    settings: Mapping[str, Any]
    """The experiment as resolved, with the replicate's seed."""
    rate_key: tuple[str, ...]
    """Where the setting that scales with the rate stands."""
    growth: float
    """From one rung to the next the rate grows by this factor."""
    share: float
    rungs: tuple[int, ...] | None = None
    """The rungs to run; `None` for a search."""

    def at(self, factor: float, key: tuple[str, ...] | None = None) -> Experiment:
        """The experiment at so many times its rate, watched by nobody: only its figures are kept."""
        settings = copy.deepcopy(dict(self.settings))
        settings.pop("observers", None)
        *way, last = key or self.rate_key
        section = settings
        for name in way:
            section = section[name]
        section[last] *= factor
        return Experiment.from_mapping(settings)


@dataclass(slots=True)
class SearchOutcome:
    """What came of a task: the figures at each rung, and for a search what its bracket says."""

    figures: dict[int, dict[str, Any]] = field(default_factory=dict)
    """By rung: the flattened summary, and `ttft_s.quarter_2` and `ttft_s.quarter_4`, means over requests."""
    alone: float = 0.0
    """Attainment where requests come one by one."""
    bracket: Bracket | None = None
    manifest: dict[str, Any] = field(default_factory=dict)
    arrival_rate_per_s: float = 0.0
    """Of the requests at rung 0."""


def search(task: SearchTask) -> SearchOutcome:
    """Carry out a task; raises what its runs raise, and `CbsimError` for a workload without a rate."""
    outcome = SearchOutcome()
    if task.rungs is not None:
        for rung in task.rungs:
            outcome.figures[rung] = _figures(_run(task, rung))
        return outcome
    return _searched(task, outcome)


def _searched(task: SearchTask, outcome: SearchOutcome) -> SearchOutcome:
    bracket = outcome.bracket = _open_bracket(task, outcome)
    while (rung := bracket.next_rung()) is not None:
        figures = outcome.figures[rung] = _figures(_run(task, rung))
        bracket.attainment[rung] = figures["slo_attainment"]
    return outcome


def _open_bracket(task: SearchTask, outcome: SearchOutcome) -> Bracket:
    """Runs requests one by one, which tells what a load can't better and where the ladder ends."""
    first = _run(task, 0)
    outcome.manifest = first.manifest
    outcome.figures[0] = _figures(first)
    arrival_s = first.requests["arrival_s"].to_numpy()
    span_s = float(arrival_s[-1] - arrival_s[0]) if len(arrival_s) else 0.0
    if not span_s:
        raise CbsimError("workload: all requests arrive at one instant; capacity needs a rate to vary")
    outcome.arrival_rate_per_s = (len(arrival_s) - 1) / span_s
    alone = run_experiment(task.at(ALONE_FACTOR, ("workload", "rate_scale"))).summary
    outcome.alone = alone["slo_attainment"]
    e2e_s = alone["e2e_s"]
    if e2e_s["max"] is None:
        return Bracket(task.share, bottom=-1, top=1, attainment={-1: outcome.alone})
    gap_s = span_s / (len(arrival_s) - 1)
    bottom = math.floor(math.log(gap_s / (_ALONE_GAP * e2e_s["max"])) / math.log(task.growth))
    top = math.ceil(math.log(span_s / (_AT_ONCE * e2e_s["mean"])) / math.log(task.growth))
    attainment = {bottom: outcome.alone}
    if bottom < 0 < top and outcome.alone >= task.share:
        attainment[0] = outcome.figures[0]["slo_attainment"]
    return Bracket(task.share, bottom, max(top, bottom + 1), attainment)


def _run(task: SearchTask, rung: int) -> Result:
    return run_experiment(task.at(task.growth**rung))


def _figures(result: Result) -> dict[str, Any]:
    """The summary as a row, and how TTFT stands early and late in the run."""
    quarters = np.array_split(result.requests["ttft_s"].to_numpy(np.float64), NUM_QUARTERS)
    early, late = quarters[1], quarters[-1]
    trend = {"ttft_s.quarter_2": _mean(early), "ttft_s.quarter_4": _mean(late)}
    return flatten(result.summary) | trend


def _mean(values: np.ndarray[Any, Any]) -> float | None:
    measured = values[~np.isnan(values)]
    return float(measured.mean()) if len(measured) else None
