"""Verdict: what the replicates of one configuration say together, and whether they could tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from cbsim.capacity.plan import Plan
from cbsim.capacity.search import SearchOutcome
from cbsim.intervals import Interval, bootstrap_interval, t_interval

MIN_MISSES = 10
"""n requests tell a share p from others if n (1 - p) is at least this: the binomial's rule of thumb."""
MAX_GROWTH = 1.5
"""A mean TTFT so many times as long in a run's last quarter as in its second says that queues still grow."""

Verdict = Literal["found", "too short", "never"]


@dataclass(frozen=True, slots=True)
class Contender:
    """One configuration and what came out for it."""

    label: str
    """Its swept values; the experiment's name where nothing is swept."""
    swept: Mapping[str, Any]
    verdict: Verdict
    rate_per_s: Interval | None
    """Requests a second with their interval; `None` if the SLO never holds, or nothing broke it."""
    against_first: Interval | None
    """The rate over that of the first contender, replicate by replicate; `None` of the first itself."""
    alone: float
    """Share of requests that meet the SLO when each is served alone."""
    reasons: tuple[str, ...] = ()
    """Why the SLO is never met, or why the requests don't suffice to tell."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """The searches of one contender, a replicate each."""

    outcomes: Sequence[SearchOutcome]
    plan: Plan
    resampled_from: int | None
    """Requests of the trace that replicates are resampled from; `None` where each is drawn from a seed."""
    is_uncertain: bool = False
    """Whether each replicate draws errors of the cost model."""

    @property
    def base_per_s(self) -> float:
        """Requests a second at rung 0."""
        return fmean(outcome.arrival_rate_per_s for outcome in self.outcomes)

    def rate_per_s(self, rung: float) -> float:
        """Requests a second at a rung, or between two."""
        return self.base_per_s * float(self.plan.growth**rung)

    def rates_per_s(self) -> list[float] | None:
        """Each replicate's capacity; `None` if one of them held on every rung."""
        crossings = [outcome.bracket.crossing() for outcome in self.outcomes if outcome.bracket is not None]
        known = [self.rate_per_s(rung) for rung in crossings if rung is not None]
        return known if len(known) == len(crossings) else None

    def interval(self, values: Sequence[float]) -> Interval:
        """The mean over replicates with its interval, whichever way the replicates were made."""
        if self.resampled_from is None:
            method = bootstrap_interval if self.is_uncertain else t_interval
            return method(values, confidence=self.plan.confidence)
        size_ratio = (self.plan.num_requests or self.resampled_from) / self.resampled_from
        return bootstrap_interval(values, size_ratio, self.plan.confidence)


def judge(
    label: str, swept: Mapping[str, Any], evidence: Evidence, first_per_s: Sequence[float] | None
) -> Contender:
    """The verdict on a contender; `first_per_s` are the capacities of the first one's replicates."""
    alone = fmean(outcome.alone for outcome in evidence.outcomes)
    share = evidence.plan.share
    if alone < share:
        reason = f"served alone, {alone:.1%} of requests meet the SLO, fewer than {share:.1%}"
        return Contender(label, swept, "never", None, None, alone, (reason,))
    rates = evidence.rates_per_s()
    if rates is None:
        reason = "the SLO holds even if all requests come at once: there are too few of them to form a queue"
        return Contender(label, swept, "too short", None, None, alone, (reason,))
    against_first = None
    if first_per_s:
        against_first = evidence.interval(
            [rate / first for rate, first in zip(rates, first_per_s, strict=True)]
        )
    reasons = _doubts(evidence)
    verdict: Verdict = "too short" if reasons else "found"
    return Contender(label, swept, verdict, evidence.interval(rates), against_first, alone, reasons)


def _doubts(evidence: Evidence) -> tuple[str, ...]:
    """Why a longer trace might have another capacity."""
    doubts = []
    num_requests = min(outcome.figures[0]["num_requests"] for outcome in evidence.outcomes)
    num_misses = num_requests * (1 - evidence.plan.share)
    if num_misses < MIN_MISSES:
        needed = round(MIN_MISSES / (1 - evidence.plan.share))
        doubts.append(
            f"{num_requests:,} requests are too few to tell {evidence.plan.share:.1%}: {needed:,} would do"
        )
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
    """Mean TTFT early and late in each replicate, at the highest rate that held."""
    early, late = [], []
    for outcome in evidence.outcomes:
        rung = None if outcome.bracket is None else outcome.bracket.holds_at
        figures = {} if rung is None else outcome.figures.get(rung, {})
        if figures.get("ttft_s.quarter_2") is not None and figures["ttft_s.quarter_4"] is not None:
            early.append(figures["ttft_s.quarter_2"])
            late.append(figures["ttft_s.quarter_4"])
    return early, late
