"""CapacitySearch: one replicate of one contender, run at rate after rate; the task that workers are given."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cbsim.base.errors import CbsimError
from cbsim.studies.capacity.bracket import Bracket
from cbsim.studies.capacity.probe import ProbeStore
from cbsim.studies.experiment import Experiment

ALONE_FACTOR = 1e-6
"""Times the rate: requests come one by one."""
ALONE_SPAN_S = 1e8
"""Longest span of arrivals one by one, some years: longer ones would have instants too coarse for steps."""
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
        return self.at(self.growth**rung)


@dataclass(slots=True)
class SearchOutcome:
    """What came of a task: the figures at each rung, and for a search what its bracket says."""

    figures: dict[int, dict[str, Any]] = field(default_factory=dict)
    """By rung; see `Probe.figures`."""
    alone: float = 0.0
    """Attainment where requests come one by one."""
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
        bracket.attainment[rung] = figures["slo_attainment"]
    return outcome


def _open_bracket(task: SearchTask, outcome: SearchOutcome, probes: ProbeStore) -> Bracket:
    """Runs requests one by one, which tells what a load can't better and where the ladder ends."""
    first = probes.run(task.at_rung(0))
    outcome.manifest = first.manifest
    outcome.figures[0] = first.figures
    span_s, num_gaps = first.span_s, first.figures["num_requests"] - 1
    if not span_s:
        raise CbsimError("workload: all requests arrive at one instant; capacity needs a rate to vary")
    outcome.arrival_rate_per_s = num_gaps / span_s
    alone_factor = max(ALONE_FACTOR, span_s / ALONE_SPAN_S)
    alone = probes.run(task.at(alone_factor, ("workload", "rate_scale"))).figures
    outcome.alone = alone["slo_attainment"]
    if alone["e2e_s.max"] is None:
        return Bracket(task.share, bottom=-1, top=1, attainment={-1: outcome.alone})
    gap_s = span_s / num_gaps
    bottom = math.floor(math.log(gap_s / (_ALONE_GAP * alone["e2e_s.max"])) / math.log(task.growth))
    top = math.ceil(math.log(span_s / (_AT_ONCE * alone["e2e_s.mean"])) / math.log(task.growth))
    attainment = {bottom: outcome.alone}
    if bottom < 0 < top and outcome.alone >= task.share:
        attainment[0] = outcome.figures[0]["slo_attainment"]
    return Bracket(task.share, bottom, max(top, bottom + 1), attainment)
