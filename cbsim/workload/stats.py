"""WorkloadStats: what a workload holds, in numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, astuple, dataclass, fields
from typing import Any, NamedTuple

import numpy as np

from cbsim.base.errors import WorkloadError
from cbsim.base.units import format_count, format_seconds
from cbsim.config.bounds import unreal
from cbsim.workload.request import FloatColumn, IntColumn, Request
from cbsim.workload.request_source import Workload


@dataclass(frozen=True, slots=True)
class LengthStats:
    """Tokens of prompts or answers; percentiles interpolate linearly."""

    mean: float
    p50: float
    p90: float
    p99: float
    max: int

    @classmethod
    def of(cls, lengths: IntColumn) -> LengthStats:
        """Of at least one length."""
        p50, p90, p99 = np.quantile(lengths, (0.5, 0.9, 0.99)).tolist()
        return cls(float(lengths.mean()), p50, p90, p99, int(lengths.max()))


@dataclass(frozen=True, slots=True)
class WorkloadStats:
    """What a workload holds. Where all arrive at one instant, rate and spread are NaN."""

    num_requests: int
    duration_s: float
    """From the first arrival to the last."""
    rate_per_s: float
    """Mean arrivals a second: one less than the requests, over the duration."""
    interarrival_cv: float
    """Standard deviation of the times between arrivals over their mean: 1 for Poisson, more is bursty."""
    num_prompt_tokens: int
    num_output_tokens: int
    prompt_tokens: LengthStats
    output_tokens: LengthStats
    num_sessions: int
    num_users: int
    prefix_share: float
    """Share of all prompt tokens that an earlier request said already: the most a prefix cache can hit."""
    notes: tuple[str, ...]
    """What reading left out, sorted or cut."""

    def to_json(self) -> dict[str, Any]:
        """Everything under its name; null for NaN."""
        figures = {name: None if value != value else value for name, value in asdict(self).items()}
        return {**figures, "notes": list(self.notes)}

    def to_text(self) -> str:
        """A small table to read, the notes below it."""
        figures = {
            "requests": format_count(self.num_requests),
            "from first to last": format_seconds(self.duration_s),
            "arrivals per second": "-" if math.isnan(self.rate_per_s) else f"{self.rate_per_s:.3f}",
            "CV between arrivals": "-" if math.isnan(self.interarrival_cv) else f"{self.interarrival_cv:.3f}",
            "prompt tokens": format_count(self.num_prompt_tokens),
            "output tokens": format_count(self.num_output_tokens),
            "sessions": format_count(self.num_sessions) if self.num_sessions else "-",
            "users": format_count(self.num_users) if self.num_users else "-",
            "prompt tokens said before": f"{self.prefix_share:.1%}",
        }
        lines = [f"{name:<27}{figure:>11}" for name, figure in figures.items()]
        lines += ["", f"{'tokens':<16}" + "".join(f"{field.name:>11}" for field in fields(LengthStats))]
        for name, lengths in (("of a prompt", self.prompt_tokens), ("of an answer", self.output_tokens)):
            lines.append(f"{name:<16}" + "".join(f"{figure:>11,.0f}" for figure in astuple(lengths)))
        return "\n".join([*lines, *([""] if self.notes else []), *self.notes])


class WorkloadColumns(NamedTuple):
    """Arrivals and lengths of all requests, in order of arrival."""

    arrival_s: FloatColumn
    num_prompt_tokens: IntColumn
    num_output_tokens: IntColumn

    @classmethod
    def of(cls, requests: Iterable[Request]) -> WorkloadColumns:
        """Of requests, read through once."""
        kind = np.dtype([("arrival_s", "f8"), ("num_prompt_tokens", "i8"), ("num_output_tokens", "i8")])
        rows = ((each.arrival_s, each.num_prompt_tokens, each.num_output_tokens) for each in requests)
        table = np.fromiter(rows, kind)
        return cls(*(table[name] for name in cls._fields))


MAX_DESCRIBED = 10_000_000
"""Requests of which figures are told: more take minutes, and gigabytes."""


def describe(workload: Workload) -> WorkloadStats:
    """Reads a workload through; raises `WorkloadError` if it is wrong, or holds no requests or too many."""
    if (number := workload.num_requests() or 0) > MAX_DESCRIBED:
        raise WorkloadError(
            f"the workload: {number:,} requests; allowed: at most {MAX_DESCRIBED:,}, as with workload.limit"
        )
    sessions: set[str | None] = {None}
    users: set[str | None] = {None}
    tree = PrefixTree()
    num_shared = 0

    def seen() -> Iterator[Request]:
        nonlocal num_shared
        for request in workload.requests():
            num_shared += tree.add(request)
            sessions.add(request.session_id)
            users.add(request.user)
            yield request

    arrival_s, prompt_tokens, output_tokens = WorkloadColumns.of(seen())
    if not len(arrival_s):
        raise WorkloadError("the workload: got no requests; allowed: at least one")
    gaps_s = np.diff(arrival_s)
    duration_s = float(arrival_s[-1] - arrival_s[0])
    num_prompt_tokens = int(prompt_tokens.sum())
    rate_per_s = len(gaps_s) / duration_s if duration_s else math.nan
    return WorkloadStats(
        num_requests=len(arrival_s),
        duration_s=duration_s,
        rate_per_s=rate_per_s,
        interarrival_cv=float(gaps_s.std() / gaps_s.mean()) if duration_s else math.nan,
        num_prompt_tokens=num_prompt_tokens,
        num_output_tokens=int(output_tokens.sum()),
        prompt_tokens=LengthStats.of(prompt_tokens),
        output_tokens=LengthStats.of(output_tokens),
        num_sessions=len(sessions) - 1,
        num_users=len(users) - 1,
        prefix_share=num_shared / num_prompt_tokens,
        notes=(*workload.notes(), *unreal(duration_s, rate_per_s)),
    )


_Node = dict[str, dict[int, "_Node"]]


class PrefixTree:
    """Everything said so far, as a tree of segments: what a prefix cache without limits would hold."""

    def __init__(self) -> None:
        self._root: _Node = {}

    def add(self, request: Request) -> int:
        """Adds a request's prompt and answer; returns how many of its first tokens were there already.

        A prompt without segments shares nothing. The answer counts as said at once, so that the sum is the
        most that any cache could find.
        """
        if request.prompt is None:
            return 0
        num_shared = 0
        is_known = True
        node = self._root
        for name, length in (*request.prompt, (f"o:{request.request_id}", request.num_output_tokens)):
            lengths = node.setdefault(name, {})
            if is_known and length not in lengths:
                num_shared += min(length, max(lengths, default=0))
                is_known = False
            elif is_known:
                num_shared += length
            node = lengths.setdefault(length, {})
        return min(num_shared, request.num_prompt_tokens)
