"""Verdict: what the replicates of one configuration say together, and whether they could tell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any, Literal

from cbsim.results.metrics import QUANTILES
from cbsim.results.slo import REQUESTS, Slo
from cbsim.studies.capacity.search import Bracket, Plan, SearchOutcome, pooled_bracket
from cbsim.studies.intervals import Interval, bootstrap_interval, t_interval
from cbsim.studies.probe import IN_SERVICE

MIN_MISSES = 10
"""n requests tell a share p from others if n (1 - p) is at least this: the binomial's rule of thumb."""
MAX_GROWTH = 1.5
"""Queues still grow if the mean TTFT of a run's last quarter is at least this many times its second's."""

Verdict = Literal["found", "too short", "never", "unlimited"]
"""Unlimited: all requests at once fill every batch for long, and the SLO still holds."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One configuration and what came out for it."""

    label: str
    """Its swept values; the experiment's name where nothing is swept."""
    swept: Mapping[str, Any]
    verdict: Verdict
    rate_per_s: Interval | None
    """Requests a second up to which the curve, the mean over replicates, meets the SLO.

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
    """Share of requests that keep their own limits (finish, without such) when each is served alone."""
    reasons: tuple[str, ...] = ()
    """Why the SLO is never met or never broken, or why the requests don't suffice to tell."""
    alone_misses: str = ""
    """What of the SLO is missed even then; empty if nothing is."""
    alone_margin: float = 0.0
    """By how much the SLO is met then (`Slo.margin`), below 0 if it isn't."""


@dataclass(frozen=True)
class Evidence:
    """The searches of one contender, a replicate each."""

    outcomes: Sequence[SearchOutcome]
    plan: Plan
    slo: Slo
    resampled_from: int | None
    """Requests of the trace that replicates are resampled from; `None` where each is drawn from a seed."""
    is_uncertain: bool = False
    """Whether each replicate draws errors of the cost model."""

    def rate_per_s(self, rung: float) -> float:
        """Requests a second at a rung, or between two."""
        base_per_s = fmean(outcome.arrival_rate_per_s for outcome in self.outcomes)
        return base_per_s * float(self.plan.growth**rung)

    @cached_property
    def alone(self) -> Mapping[str, Any]:
        """The figures where requests come one by one, means over replicates."""
        return self.slo.mean_figures([outcome.alone for outcome in self.outcomes])

    @property
    def holds_alone(self) -> bool:
        """Whether the SLO is met then; otherwise no rate is low enough."""
        return self.slo.margin(self.alone) >= 0

    @property
    def brackets(self) -> list[Bracket]:
        """What each replicate's search has shown."""
        return [outcome.bracket for outcome in self.outcomes if outcome.bracket is not None]

    @property
    def is_unlimited(self) -> bool:
        """Whether nothing breaks the SLO, and nothing would if there were more requests.

        So it is where no wait can break it, and at most half of all requests, sent at once, are ever in
        service together: the others were served after them, in batches as full as there can be.
        """
        if not self.slo.ignores_queue or any(each.fails_at is not None for each in self.brackets):
            return False
        fullest = [outcome.figures[max(outcome.figures)] for outcome in self.outcomes]
        return all(2 * figures[IN_SERVICE] <= figures[REQUESTS] for figures in fullest)

    @cached_property
    def capacity_per_s(self) -> float | None:
        """Where the curve leaves the SLO; `None` if it never holds, or a replicate always does."""
        if not self.own_rates_per_s:
            return None
        return pooled_bracket(self.outcomes, self.slo).crossing(self.rate_per_s)

    @cached_property
    def own_rates_per_s(self) -> tuple[float, ...]:
        """Each replicate's own capacity; empty if the SLO never holds, or a replicate always does."""
        crossings = [each.crossing(self.rate_per_s) for each in self.brackets]
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
    best = max(evidence, key=lambda each: math.inf if each.is_unlimited else each.capacity_per_s or 0.0)
    return tuple(
        _contender(label, cell, each, evidence[0], best)
        for label, cell, each in zip(labels, swept, evidence, strict=True)
    )


def _contender(
    label: str, swept: Mapping[str, Any], evidence: Evidence, first: Evidence, best: Evidence
) -> Contender:
    rate_per_s, slo = evidence.capacity_interval(), evidence.slo
    misses, margin = slo.all_misses(slo.misses(evidence.alone)), slo.margin(evidence.alone)
    alone = slo.kept_share(evidence.alone) or 0.0
    if rate_per_s is not None:
        doubts = _doubts(evidence)
        verdict: Verdict = "too short" if doubts else "found"
        ratios = evidence.against(first), evidence.against(best)
        own_per_s = evidence.own_rates_per_s
        return Contender(label, swept, verdict, rate_per_s, own_per_s, *ratios, alone, doubts, misses, margin)
    num_broken = sum(each.fails_at is not None for each in evidence.brackets)
    if not evidence.holds_alone:
        verdict, reason = "never", f"served one by one, it {misses}"
    elif num_broken:
        verdict = "too short"
        reason = (
            f"{num_broken} of {len(evidence.brackets)} replicates break the SLO at some rate, the others at "
            "none: too few requests to tell"
        )
    elif evidence.is_unlimited:
        verdict, reason = (
            "unlimited",
            "the SLO holds even if all requests come at once, in batches that stay full",
        )
    else:
        verdict = "too short"
        reason = "the SLO holds even if all requests come at once: too few of them to form a queue"
    return Contender(label, swept, verdict, None, (), None, None, alone, (reason,), misses, margin)


def _doubts(evidence: Evidence) -> tuple[str, ...]:
    """Why a longer trace might have another capacity."""
    doubts = []
    num_requests = min(outcome.figures[0]["num_requests"] for outcome in evidence.outcomes)
    share = _finest_share(evidence.slo)
    if share is not None and num_requests * (1 - share) < MIN_MISSES:
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


def _finest_share(slo: Slo) -> float | None:
    """The highest share of requests that a condition is about; `None` where all are about means or maxima."""
    shares = [
        QUANTILES[statistic]
        for _, _, statistic in (key.partition(".") for key in slo.of_run)
        if statistic in QUANTILES
    ]
    return max([*shares, *([slo.share] if slo.own else [])], default=None)


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
