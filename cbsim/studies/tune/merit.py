"""Merit: how good settings are: within the SLO or by how much not, and by what is wanted of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from cbsim.results.metrics import COST, gpu_hours_per_million_tokens
from cbsim.results.slo import Miss, Slo
from cbsim.studies.experiment import Experiment
from cbsim.studies.front import distinct_front
from cbsim.studies.intervals import SAME

GPU_HOURS = "gpu_hours_per_million_tokens"
"""Stands for the cost where GPUs have no prices."""
GOODPUT, THROUGHPUT, LATENCY = "goodput_per_s", "request_throughput_per_s", "e2e_s.p99"
_LEAST, _MOST = 0.01, 2.0
"""Bounds of the headroom, either side of 0."""
WORST = -1e9
"""The score of settings that can't run or serve nobody."""

Figures = Mapping[str, Any]
"""The flattened summary of a run, with its `GPU_HOURS`."""


@dataclass(frozen=True, slots=True)
class Aim:
    """What is wanted: an SLO that is met, and beyond that the best of one figure."""

    slo: Slo
    objective: Literal["goodput", "cost", "latency"] = "goodput"
    has_prices: bool = False
    """Whether every GPU has a price, so that costs are in money."""

    @property
    def cost(self) -> str:
        """The figure that costs are told by."""
        return COST if self.has_prices else GPU_HOURS

    @property
    def gain(self) -> str:
        """The figure of what is served, requests a second: within their limits, where they have any."""
        return GOODPUT if self.slo.own else THROUGHPUT

    @property
    def figure(self) -> str:
        """The figure that decides among settings that meet the SLO."""
        return {"goodput": self.gain, "cost": self.cost, "latency": LATENCY}[self.objective]

    def misses(self, figures: Figures) -> list[Miss]:
        """What of the SLO a run does not meet; nothing without an SLO."""
        return self.slo.misses(figures) if self.slo else []

    def score(self, figures: Figures) -> float:
        """A number that is higher the better a run is.

        Above 0 where the SLO is met: the figure that decides, or one over it where less is better. Else minus
        the share of its limit by which the worst miss is beyond it.
        """
        if misses := self.misses(figures):
            return max(WORST, -max(miss.by for miss in misses))
        return self.value(figures)

    def value(self, figures: Figures) -> float:
        """The figure that decides, or one over it where less is better: the higher the better."""
        return self._value(figures[self.figure])

    def promise(self, figures: Figures) -> float:
        """The same, as if the SLO were met by all: of goodput it is the throughput."""
        return self._value(figures[THROUGHPUT if self.figure == GOODPUT else self.figure])

    def _value(self, figure: float | None) -> float:
        if not figure:
            return 0.0
        return float(figure if self.objective == "goodput" else 1 / figure)

    def headroom(self, figures: Figures) -> float:
        """How far a run is within the SLO: above 0 where it is met, below 0 where not.

        The logarithm of a limit over its figure (for limits on each request the p99), of the nearest limit:
        it grows evenly from far within to far beyond, as shares of requests do not.
        """
        limits = {f"{name}.p99": limit for name, limit in self.slo.own.items()} | dict(self.slo.of_run)
        known = [math.log(limit / figures[key]) for key, limit in limits.items() if figures[key]]
        room = min(_MOST, max(-_MOST, min(known, default=_MOST)))
        return min(room, -_LEAST) if self.misses(figures) else max(room, _LEAST)

    def best(self, runs: Sequence[Figures]) -> int:
        """The place of the best run.

        Of runs whose scores are the same to within `SAME` of the best, the one of the lowest cost and, where
        costs are the same too, of the shortest p99 E2E. Where none meets the SLO, the one of the highest
        score is the nearest.
        """
        scores = [self.score(figures) for figures in runs]
        top = max(scores)
        if top <= 0:
            return scores.index(top)
        alike = [place for place, score in enumerate(scores) if score >= top * (1 - SAME)]
        costs = {place: runs[place][self.cost] for place in alike}
        least = min(costs.values())
        alike = [place for place in alike if costs[place] <= least * (1 + SAME)]
        return min(alike, key=lambda place: (runs[place][LATENCY], -scores[place], place))

    def front(self, runs: Sequence[Figures]) -> list[int]:
        """The places of runs that meet the SLO and that no other beats in both gain and cost, by cost.

        Of those that are the same to within `SAME` one stands for all: the best, if it is among them.
        """
        met = [place for place, figures in enumerate(runs) if self.score(figures) > 0]
        if not met:
            return []
        gain, cost = (np.array([float(runs[place][key]) for place in met]) for key in (self.gain, self.cost))
        front, best = [met[group[0]] for group in distinct_front(gain, cost)], self.best(runs)
        alike = [place for place in front if self._is_same(runs[place], runs[best])]
        return [best if place in alike[:1] else place for place in front]

    def _is_same(self, first: Figures, second: Figures) -> bool:
        """Whether two runs serve and cost the same."""
        pairs = ((first[key], second[key]) for key in (self.gain, self.cost))
        return all(abs(one - other) <= SAME * max(one, other) for one, other in pairs)


def with_gpu_hours(figures: Mapping[str, Any], experiment: Experiment) -> Figures:
    """The figures of a run with the hours of GPUs that a million output tokens take."""
    if experiment.cluster is None:
        num_gpus: float = experiment.replicas.count * experiment.num_gpus
    else:
        # Where replicas come and go, the mean number of those that were there.
        num_gpus = sum(
            figures.get(f"mean_replicas.{pool.name}", pool.count) * own.num_gpus
            for pool, own in experiment.pools()
        )
    tokens_per_s = figures["output_token_throughput_per_s"]
    return {**figures, GPU_HOURS: gpu_hours_per_million_tokens(num_gpus, tokens_per_s)}
