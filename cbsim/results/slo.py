"""Slo: what users are promised, of each request and of the run as a whole, and what a run misses of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Annotated, Any, ClassVar, NamedTuple, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from cbsim.base.errors import CbsimError
from cbsim.base.units import format_seconds
from cbsim.config.section import Section

EACH, SHARE = "each", "share"
ATTAINMENT, FINISHED, REQUESTS = "slo_attainment", "num_finished", "num_requests"
"""Figures of a flattened summary that the first condition of every SLO is about."""
DEFAULT_SHARE = 0.99
WITHOUT_QUEUE = ("tpot_s", "itl_s")
"""Latencies of which a request's time in the queue is no part."""


class LatencyLimits(Section):
    """Limits on one latency, seconds: what each request is promised, and figures of the run as a whole."""

    short_form: ClassVar[str | None] = EACH

    each: float | None = Field(default=None, gt=0)
    """Longest that a request may have: what a number instead of this mapping means."""
    mean: float | None = Field(default=None, gt=0)
    """Longest mean of the run."""
    p50: float | None = Field(default=None, gt=0)
    """Longest median of the run."""
    p90: float | None = Field(default=None, gt=0)
    """Longest 90th percentile of the run."""
    p95: float | None = Field(default=None, gt=0)
    """Longest 95th percentile of the run."""
    p99: float | None = Field(default=None, gt=0)
    """Longest 99th percentile of the run."""
    max: float | None = Field(default=None, gt=0)
    """Longest that any request of the run (for `itl_s`, any gap) may have."""

    @model_validator(mode="after")
    def _has_a_limit(self) -> Self:
        if not any(limit is not None for _, limit in self):
            raise ValueError(f"got no limit; expected any of {', '.join(type(self).model_fields)}")
        return self

    @model_serializer(mode="wrap")
    def _only_given(self, handler: SerializerFunctionWrapHandler) -> dict[str, float]:
        return {name: limit for name, limit in handler(self).items() if limit is not None}


Limit = Annotated[float, Field(gt=0)] | LatencyLimits | None


class SloConfig(Section):
    """What users are promised, seconds. A number is a limit that each request must keep; a mapping limits the
    run as a whole, as in `tpot_s: {p99: 0.06}`, and `{each: 0.1, p99: 0.06}` does both.
    """

    ttft_s: Limit = None
    """Longest time to the first token, queueing included."""
    tpot_s: Limit = None
    """Longest mean time per output token after the first."""
    itl_s: Limit = None
    """Longest gap between two consecutive tokens; of a run, over all gaps."""
    e2e_s: Limit = None
    """Longest time from arrival to the last token."""
    share: float = Field(default=DEFAULT_SHARE, gt=0, le=1)
    """Share of requests that must finish, each within every limit on its own, for the SLO to be met."""

    def limits(self) -> dict[str, Any]:
        """What is given, as plain data; empty where nothing is promised."""
        return Slo.of(self.model_dump()).plain()


class Miss(NamedTuple):
    """A condition that a run doesn't keep."""

    key: str
    """Of the flattened summary, as `ttft_s.p95`."""
    figure: float | None
    """What the run has; `None` if nobody was served so far."""
    limit: float
    by: float
    """How far beyond the limit, as a share of it; infinite where there is no figure."""


@dataclass(frozen=True)
class Slo:
    """Limits in seconds. It is met where `share` of the requests finish within all of their own limits, and
    every figure of the run is within its limit.

    Rejected, failed and unfinished requests are no part of a percentile, so that they count in `share` alone.
    Figures are those of a flattened summary, or means of such over replicates.
    """

    own: Mapping[str, float] = field(default_factory=dict)
    """Latency -> what no request may exceed: goodput counts by these."""
    of_run: Mapping[str, float] = field(default_factory=dict)
    """Key of the flattened summary (`ttft_s.p95`) -> what it may not exceed."""
    share: float = DEFAULT_SHARE

    @classmethod
    def of(cls, given: Slo | Mapping[str, Any] | None, share: float | None = None) -> Slo:
        """An SLO from plain data as `SloConfig` dumps it, or as it is; `share` goes before the given one.

        Raises `CbsimError` for what is no limit, as in a damaged folder.
        """
        if isinstance(given, Slo):
            return given if share is None else cls(given.own, given.of_run, share)
        own, of_run, told = dict[str, float](), dict[str, float](), DEFAULT_SHARE
        for name, value in (given or {}).items():
            if name == SHARE:
                told = _number(name, value)
                continue
            limits = value if isinstance(value, Mapping) else {EACH: value}
            for statistic, limit in limits.items():
                key = f"{name}.{statistic}"
                if limit is not None and statistic == EACH:
                    own[name] = _number(name, limit)
                elif limit is not None:
                    of_run[key] = _number(key, limit)
        return cls(own, of_run, told if share is None else share)

    def plain(self) -> dict[str, Any]:
        """The same as plain data; `share` only where it is not the usual one."""
        made: dict[str, Any] = dict(self.own)
        for key, limit in self.of_run.items():
            name, _, statistic = key.partition(".")
            limits = made.get(name, {})
            made[name] = {**(limits if isinstance(limits, dict) else {EACH: limits}), statistic: limit}
        return made | ({SHARE: self.share} if made and self.share != DEFAULT_SHARE else {})

    def __bool__(self) -> bool:
        """Whether anything is promised."""
        return bool(self.own or self.of_run)

    @property
    def latencies(self) -> list[str]:
        """The latencies that it limits, either way."""
        return list(dict.fromkeys([*self.own, *(key.partition(".")[0] for key in self.of_run)]))

    @property
    def ignores_queue(self) -> bool:
        """Whether no wait, however long, breaks it."""
        return set(self.latencies) <= {*WITHOUT_QUEUE}

    def limits_on(self, latency: str) -> dict[str, float]:
        """Of one latency: statistic, `each` for what each request is promised, and limit, seconds."""
        own = {EACH: self.own[latency]} if latency in self.own else {}
        named = ((*key.partition("."), limit) for key, limit in self.of_run.items())
        return own | {statistic: limit for name, _, statistic, limit in named if name == latency}

    def kept_share(self, figures: Mapping[str, Any]) -> float | None:
        """The share of requests that finish within their own limits; `None` without requests."""
        if self.own:
            kept = figures[ATTAINMENT]
        else:
            kept = figures[FINISHED] / figures[REQUESTS] if figures[REQUESTS] else None
        return None if kept is None else float(kept)

    def misses(self, figures: Mapping[str, Any]) -> list[Miss]:
        """The conditions that are not kept."""
        missed, kept = [], self.kept_share(figures)
        if kept is not None and kept < self.share:
            missed.append(Miss(ATTAINMENT, kept, self.share, (self.share - kept) / self.share))
        for key, limit in self.of_run.items():
            figure = figures.get(key)
            if figure is None and not figures[FINISHED]:
                missed.append(Miss(key, None, limit, math.inf))
            elif figure is not None and figure > limit:
                missed.append(Miss(key, float(figure), limit, float(figure) / limit - 1))
        return missed

    def margin(self, figures: Mapping[str, Any]) -> float:
        """By how much it is met, below 0 if not: the least over all conditions.

        Of the share of requests, by how much it is above the one promised; of other figures, what is left
        below the limit, as a share of it.
        """
        kept = self.kept_share(figures)
        margins = [-1.0 if kept is None else kept - self.share]
        for key, limit in self.of_run.items():
            figure = figures.get(key)
            if figure is not None:
                margins.append(1 - float(figure) / limit)
            elif not figures[FINISHED]:
                margins.append(-1.0)
        return min(margins)

    def met(self, figures: Mapping[str, Any]) -> bool | None:
        """Whether it is met; `None` where nothing is promised, or nobody came."""
        if not self or self.kept_share(figures) is None:
            return None
        return not self.misses(figures)

    def bounded_figures(self) -> dict[str, float]:
        """Figures of latencies and their limits: those of the run, and for limits on each request the
        percentile of the share that must keep them, where a summary has it.
        """
        percentile = f"p{self.share * 100:g}"
        own = {f"{name}.{percentile}": limit for name, limit in self.own.items()}
        return (own if percentile in LatencyLimits.model_fields else {}) | dict(self.of_run)

    def mean_figures(self, runs: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
        """What it is judged by, as means over replicates; `None` where no replicate has the figure."""
        means: dict[str, float | None] = {}
        for key in (REQUESTS, FINISHED, ATTAINMENT, *self.of_run):
            known = [run[key] for run in runs if run.get(key) is not None]
            means[key] = fmean(known) if known else None
        return means

    def describe(self) -> str:
        """Every limit: `TTFT ≤ 2 s and TPOT p99 ≤ 60 ms`."""
        return joined([*_described(self.own), *_described(self.of_run)])

    def describe_own(self) -> str:
        """The limits on each request alone: `TTFT ≤ 2 s and TPOT ≤ 50 ms`."""
        return joined(_described(self.own))

    def describe_run(self) -> str:
        """The limits of the run alone: `TTFT p95 ≤ 1.5 s and TPOT p99 ≤ 60 ms`."""
        return joined(_described(self.of_run))

    def promise(self) -> str:
        """All of it, with the share: `TTFT ≤ 2 s for 99% of requests, and TPOT p99 ≤ 60 ms`."""
        own = f"{self.describe_own()} for {percent(self.share)} of requests" if self.own else ""
        return ", and ".join(filter(None, [own, self.describe_run()]))

    def miss_words(self, miss: Miss) -> str:
        """`misses TPOT p99 by 6% (63.6 ms)`."""
        if miss.key == ATTAINMENT:
            assert miss.figure is not None
            kept, share = percent_below(miss.figure, miss.limit), percent(miss.limit)
            if not self.own:
                return f"finishes {kept} of requests, not {share}"
            return f"has {kept} of requests within {self.describe_own()}, not {share}"
        name = figure_name(miss.key)
        if miss.figure is None:
            return f"has no {name}, for no request finished"
        by = f"by {_rounded(miss.by * 100)}%" if miss.by < 1 else f"by a factor of {miss.by + 1:,.3g}"
        return f"misses {name} {by} ({format_seconds(miss.figure)})"

    def all_misses(self, misses: Sequence[Miss]) -> str:
        """What several conditions miss, the farthest first."""
        return joined([self.miss_words(miss) for miss in sorted(misses, key=lambda miss: -miss.by)])

    def verdict(self, figures: Mapping[str, Any], run: str = "") -> str:
        """One sentence whose first word is whether a run, named where there are several, meets it."""
        if not self:
            return "No SLO is given."
        kept = self.kept_share(figures)
        if kept is None:
            return f"Nothing to hold against {self.describe()}: no request came."
        if misses := self.misses(figures):
            limits = self.describe_run()
            asked = (
                f" (limits: {limits})" if limits and any(each.key in self.of_run for each in misses) else ""
            )
            whose = f"Not met by {run}: it" if run else "Not met: the run"
            return f"{whose} {self.all_misses(misses)}{asked}."
        told = [f"{percent_met(kept)} of requests are within {self.describe_own()}"] if self.own else []
        for key, limit in self.of_run.items():
            if figures.get(key) is not None:
                shown, most = format_seconds(figures[key]), duration(limit)
                told.append(f"{figure_name(key)} is {shown} of the {most} allowed")
        whose = f"Met by {run}" if run else "Met"
        return f"{whose}: {joined(told) or 'no request has what is limited'}."


def figure_name(key: str) -> str:
    """`TTFT p95` for `ttft_s.p95`, `TTFT` for `ttft_s`."""
    name, _, statistic = key.partition(".")
    return f"{name.removesuffix('_s').upper()} {statistic}".strip()


def duration(seconds: float) -> str:
    """A limit as people write it: `2 s`, `50 ms`."""
    value, _, unit = format_seconds(seconds).partition(" ")
    return f"{float(value):g} {unit}" if value.replace(".", "").isdigit() else f"{value} {unit}"


def percent(share: float) -> str:
    """A share that somebody has set: `99%`, `99.5%`."""
    return f"{share * 100:g}%"


def percent_below(share: float, limit: float) -> str:
    """A share below a limit to as many digits as show that it is: `98.96%` of 99 %."""
    for digits in range(1, 12):
        text = f"{share * 100:.{digits}f}"
        if float(text) < round(limit * 100, 10):
            return f"{text}%"
    return percent(share)


def percent_met(share: float) -> str:
    """A share of which nothing is rounded up to all: `99.98%`."""
    return f"{share:.1%}" if share == 1 or share < 0.9995 else f"{math.floor(share * 1e4) / 100:g}%"


def joined(told: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(told[:-1]), told[-1]] if len(told) > 1 else told)


def _described(limits: Mapping[str, float]) -> list[str]:
    """`TTFT p95 ≤ 1.5 s` for each."""
    return [f"{figure_name(key)} ≤ {duration(limit_s)}" for key, limit_s in limits.items()]


def _rounded(number: float) -> str:
    """Whole from 1 on, one significant digit below."""
    return f"{number:.0f}" if number >= 0.95 else f"{number:.1g}" if number >= 1e-4 else "less than 0.0001"


def _number(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CbsimError(f"slo.{key}: got {value!r}; expected a number")
    return float(value)
