"""Verdict: what the replicates of one configuration say together, and whether they could tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any, Literal

from cbsim.studies.capacity.search import Plan, SearchOutcome, pooled_bracket
from cbsim.studies.intervals import Interval, bootstrap_interval, t_interval

MIN_MISSES = 10
"""n requests tell a share p from others if n (1 - p) is at least this: the binomial's rule of thumb."""
MAX_GROWTH = 1.5
"""Queues still grow if the mean TTFT of a run's last quarter is at least this many times its second's."""

Verdict = Literal["found", "too short", "never"]


@dataclass(frozen=True, slots=True)
class Contender:
    """One configuration and what came out for it."""

    label: str
    """Its swept values; the experiment's name where nothing is swept."""
    swept: Mapping[str, Any]
    verdict: Verdict
    rate_per_s: Interval | None
    """Requests a second up to which the curve, the mean over replicates, is not below the share.

    The interval round it is as wide as that of the mean of `own_rates_per_s`. `None` if the SLO never holds,
    or nothing broke it.
    """
    own_rates_per_s: tuple[float, ...]
    """The capacity that each replicate would have alone; empty without `rate_per_s`."""
    against_first: Interval | None
    """The mean of `own_rates_per_s` over those of the first contender, in pairs of replicates that met the
    same requests: a ratio of means would be less sure. `None` of the first itself."""
    against_best: Interval | None
    """As `against_first`, over the contender of the highest `rate_per_s`."""
    alone: float
    """Share of requests that meet the SLO when each is served alone."""
    reasons: tuple[str, ...] = ()
    """Why the SLO is never met, or why the requests don't suffice to tell."""


@dataclass(frozen=True)
class Evidence:
    """The searches of one contender, a replicate each."""

    outcomes: Sequence[SearchOutcome]
    plan: Plan
    resampled_from: int | None
    """Requests of the trace that replicates are resampled from; `None` where each is drawn from a seed."""
    is_uncertain: bool = False
    """Whether each replicate draws errors of the cost model."""

    def rate_per_s(self, rung: float) -> float:
        """Requests a second at a rung, or between two."""
        base_per_s = fmean(outcome.arrival_rate_per_s for outcome in self.outcomes)
        return base_per_s * float(self.plan.growth**rung)

    @property
    def alone(self) -> float:
        """Share of requests that meet the SLO where they come one by one."""
        return fmean(outcome.alone for outcome in self.outcomes)

    @property
    def holds_alone(self) -> bool:
        """Whether that share is enough; otherwise no rate is low enough."""
        return self.alone >= self.plan.share

    @cached_property
    def capacity_per_s(self) -> float | None:
        """Where the curve falls below the share; `None` if it never holds, or a replicate always does."""
        return pooled_bracket(self.outcomes).crossing(self.rate_per_s) if self.own_rates_per_s else None

    @cached_property
    def own_rates_per_s(self) -> tuple[float, ...]:
        """Each replicate's own capacity; empty if the SLO never holds, or a replicate always does."""
        brackets = [outcome.bracket for outcome in self.outcomes if outcome.bracket is not None]
        crossings = [each.crossing(self.rate_per_s) for each in brackets]
        known = tuple(rate for rate in crossings if rate is not None)
        return known if self.holds_alone and len(known) == len(crossings) else ()

    def interval(self, values: Sequence[float]) -> Interval:
        """The mean over replicates with its interval, whichever way the replicates were made."""
        if self.resampled_from is None:
            method = bootstrap_interval if self.is_uncertain else t_interval
            return method(values, confidence=self.plan.confidence)
        size_ratio = (self.plan.num_requests or self.resampled_from) / self.resampled_from
        return bootstrap_interval(values, size_ratio, self.plan.confidence)

    def capacity_interval(self) -> Interval | None:
        """The capacity on the curve, as unsure as the mean of the replicates' own is."""
        if self.capacity_per_s is None:
            return None
        return Interval.around(self.capacity_per_s, self.interval(self.own_rates_per_s).half_width)

    def against(self, other: Evidence) -> Interval | None:
        """The replicates' own capacities over another's; `None` of itself, or where one is not known."""
        if other is self or not self.own_rates_per_s or not other.own_rates_per_s:
            return None
        pairs = zip(self.own_rates_per_s, other.own_rates_per_s, strict=True)
        return self.interval([one / two for one, two in pairs])


def judge_all(
    labels: Sequence[str], swept: Sequence[Mapping[str, Any]], evidence: Sequence[Evidence]
) -> tuple[Contender, ...]:
    """The verdict on each contender, beside the first and the best of them."""
    best = max(evidence, key=lambda each: each.capacity_per_s or 0.0)
    return tuple(
        _contender(label, cell, each, evidence[0], best)
        for label, cell, each in zip(labels, swept, evidence, strict=True)
    )


def _contender(
    label: str, swept: Mapping[str, Any], evidence: Evidence, first: Evidence, best: Evidence
) -> Contender:
    rate_per_s, alone = evidence.capacity_interval(), evidence.alone
    if rate_per_s is not None:
        doubts = _doubts(evidence)
        verdict: Verdict = "too short" if doubts else "found"
        ratios = evidence.against(first), evidence.against(best)
        return Contender(label, swept, verdict, rate_per_s, evidence.own_rates_per_s, *ratios, alone, doubts)
    if evidence.holds_alone:
        verdict = "too short"
        reason = "the SLO holds even if all requests come at once: too few of them to form a queue"
    else:
        verdict = "never"
        reason = f"served alone, {alone:.1%} of requests meet the SLO, fewer than {evidence.plan.share:.1%}"
    return Contender(label, swept, verdict, None, (), None, None, alone, (reason,))


def _doubts(evidence: Evidence) -> tuple[str, ...]:
    """Why a longer trace might have another capacity."""
    doubts = []
    share = evidence.plan.share
    num_requests = min(outcome.figures[0]["num_requests"] for outcome in evidence.outcomes)
    if num_requests * (1 - share) < MIN_MISSES:
        needed = round(MIN_MISSES / (1 - share))
        doubts.append(f"{num_requests:,} requests are too few to tell {share:.1%}: {needed:,} would do")
    early, late = _trend(evidence)
    if early and len(early) > 1 and fmean(late) > MAX_GROWTH * fmean(early):
        growth = t_interval([after - before for before, after in zip(early, late, strict=True)])
        if growth.low > 0:
            ratio = fmean(late) / fmean(early)
            doubts.append(
                f"queues still grow at this rate: the last quarter's mean TTFT is {ratio:.1f} times the "
                "second's, so that a longer trace would have a lower capacity"
            )
    return tuple(doubts)


def _trend(evidence: Evidence) -> tuple[list[float], list[float]]:
    """Mean TTFT early and late in each replicate, at the highest rate at which that one held.

    There all of them are about as near their limits, so that fewer replicates show a growth than at one rate.
    """
    early, late = [], []
    for outcome in evidence.outcomes:
        rung = None if outcome.bracket is None else outcome.bracket.holds_at
        figures = {} if rung is None else outcome.figures.get(rung, {})
        if figures.get("ttft_s.quarter_2") is not None and figures["ttft_s.quarter_4"] is not None:
            early.append(figures["ttft_s.quarter_2"])
            late.append(figures["ttft_s.quarter_4"])
    return early, late
