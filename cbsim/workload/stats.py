"""WorkloadStats: what a workload holds, in numbers."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass

import numpy as np

from cbsim.errors import WorkloadError
from cbsim.workload.base import Workload
from cbsim.workload.batch import FloatColumn, IntColumn
from cbsim.workload.prefixes import PrefixTree


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


@dataclass(frozen=True, slots=True)
class WorkloadColumns:
    """Arrivals and lengths of all requests, in order of arrival."""

    arrival_s: FloatColumn
    num_prompt_tokens: IntColumn
    num_output_tokens: IntColumn


def describe(workload: Workload) -> WorkloadStats:
    """Reads a workload through; raises `WorkloadError` if it is wrong or holds no requests."""
    return describe_with_columns(workload)[0]


def describe_with_columns(workload: Workload) -> tuple[WorkloadStats, WorkloadColumns]:
    """The numbers, and the columns for a plot, of one reading."""
    arrivals, prompts, outputs = array("d"), array("q"), array("q")
    sessions: set[str] = set()
    users: set[str] = set()
    tree = PrefixTree()
    num_shared = 0
    for request in workload.requests():
        arrivals.append(request.arrival_s)
        prompts.append(request.num_prompt_tokens)
        outputs.append(request.num_output_tokens)
        num_shared += tree.add(request)
        if request.session_id is not None:
            sessions.add(request.session_id)
        if request.user is not None:
            users.add(request.user)
    columns = WorkloadColumns(np.array(arrivals), np.array(prompts), np.array(outputs))
    return _stats(columns, num_shared, len(sessions), len(users), tuple(workload.notes())), columns


def _stats(
    columns: WorkloadColumns, num_shared: int, num_sessions: int, num_users: int, notes: tuple[str, ...]
) -> WorkloadStats:
    if not len(columns.arrival_s):
        raise WorkloadError("the workload: got no requests; allowed: at least one")
    gaps_s = np.diff(columns.arrival_s)
    duration_s = float(columns.arrival_s[-1] - columns.arrival_s[0])
    num_prompt_tokens = int(columns.num_prompt_tokens.sum())
    return WorkloadStats(
        num_requests=len(columns.arrival_s),
        duration_s=duration_s,
        rate_per_s=len(gaps_s) / duration_s if duration_s else math.nan,
        interarrival_cv=float(gaps_s.std() / gaps_s.mean()) if duration_s else math.nan,
        num_prompt_tokens=num_prompt_tokens,
        num_output_tokens=int(columns.num_output_tokens.sum()),
        prompt_tokens=LengthStats.of(columns.num_prompt_tokens),
        output_tokens=LengthStats.of(columns.num_output_tokens),
        num_sessions=num_sessions,
        num_users=num_users,
        prefix_share=num_shared / num_prompt_tokens,
        notes=notes,
    )
