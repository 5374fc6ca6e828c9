"""Spans: the slices of each request as ranges of steps, and the periods in which it runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from cbsim.results.latency.ticks import RangeSums, StepTimes
from cbsim.results.run_log import PREEMPTED, RESUMED, Column, Slices

_TOKENS = 2**32
"""More than any request has computed."""


class Spans(NamedTuple):
    """Ranges of steps, by request and then in the order of steps; a prompt slice is a range of one step."""

    request: Column
    first: Column
    last: Column
    prefill: Column
    """The row in `Slices.prefills`; -1 for decodes."""
    begins: Column
    """Whether a running period begins: at admission, and when it is resumed."""
    stop: Column
    """The last step of the running period, if it ends with this span; else `last`."""
    is_recompute: Column
    """Whether a prompt slice begins with tokens that were computed before a preemption."""

    def only(self, chosen: Column) -> Spans:
        """The chosen rows."""
        return Spans(*(column[chosen] for column in self))


class Preemptions(NamedTuple):
    """Preemptions and resumptions on a replica, by request and then in the order of time."""

    request: Column
    at_s: Column
    resumed: Column
    """Requests."""
    resumed_step: Column
    """The first step for which each of them was resumed."""


def preemptions_of(events: Mapping[str, Column], replica: int, times: StepTimes) -> Preemptions:
    """The preemptions and resumptions on a replica, from the events of a run."""
    code, mine = events["event"], events["replica"] == replica
    preempted, resumed = (np.flatnonzero(mine & (code == wanted)) for wanted in (PREEMPTED, RESUMED))
    preempted, resumed = (
        rows[np.argsort(events["request"][rows], kind="stable")] for rows in (preempted, resumed)
    )
    step = events["step"][resumed]
    step = np.where(step < 0, times.first_decided(events["time_s"][resumed]), step)
    return Preemptions(
        events["request"][preempted], events["time_s"][preempted], events["request"][resumed], step
    )


def spans_of(
    slices: Slices, times: StepTimes, chunks_alone: RangeSums, preemptions: Preemptions | None
) -> Spans:
    """The spans of a replica; `chunks_alone` counts the steps without decodes."""
    prefills, decodes = slices.prefills, slices.decodes
    request = np.concatenate([prefills["request"], decodes["request"]])
    first = np.concatenate([prefills["step"], decodes["first_step"]])
    last = np.concatenate([prefills["step"], decodes["last_step"]])
    num_prefills = len(prefills["step"])
    order = np.argsort(_key(request, first, times), kind="stable")
    request, first, last = request[order], first[order], last[order]
    prefill = np.where(order < num_prefills, order, -1)
    begins = np.ones(len(request), dtype=bool)
    begins[1:] = request[1:] != request[:-1]
    spans = Spans(request, first, last, prefill, begins, last, np.zeros(len(request), dtype=bool))
    if preemptions is None or not len(preemptions.request):
        return spans
    begins, stop = _periods(spans, times, preemptions)
    return spans._replace(begins=begins, stop=stop, is_recompute=_recomputed(spans, slices, chunks_alone))


def _key(request: Column, step: Column, times: StepTimes) -> Column:
    """Rises by request, then by step."""
    key: Column = request.astype(np.int64) * (len(times) + 1) + step
    return key


def _periods(spans: Spans, times: StepTimes, preemptions: Preemptions) -> tuple[Column, Column]:
    """`begins` and `stop` of spans."""
    request = spans.request
    resumptions = np.sort(_key(preemptions.resumed, preemptions.resumed_step, times))
    num_before = np.searchsorted(resumptions, _key(request, spans.first, times), side="right")
    begins = spans.begins.copy()
    begins[1:] |= num_before[1:] != num_before[:-1]
    ending = np.flatnonzero(begins[1:] & ~spans.begins[1:])
    # A period that began with the n-th resumption ends with the preemption after it.
    nth = num_before[ending] - np.searchsorted(preemptions.resumed, request[ending])
    preempted = np.searchsorted(preemptions.request, request[ending]) + nth
    stop = spans.last.copy()
    stop[ending] = np.maximum(stop[ending], times.last_ended(preemptions.at_s[preempted]))
    return begins, stop


def _recomputed(spans: Spans, slices: Slices, chunks_alone: RangeSums) -> Column:
    """`is_recompute` of spans."""
    is_prefill = spans.prefill >= 0
    before = np.where(is_prefill, slices.prefills["num_computed_tokens"][spans.prefill], 0)
    tokens = np.where(is_prefill, slices.prefills["num_tokens"][spans.prefill], 0)
    (alone,) = chunks_alone.over(spans.first, spans.last)
    num_decoded = np.cumsum(np.where(is_prefill, 0, spans.last - spans.first + 1 - alone))
    chunk = np.maximum.accumulate(np.where(is_prefill, np.arange(len(is_prefill)), 0))
    num_computed = (before + tokens)[chunk] + num_decoded - num_decoded[chunk]
    base = spans.request.astype(np.int64) * _TOKENS
    most = np.maximum.accumulate(base + num_computed)
    most_before = np.concatenate([[0], most[:-1]]) - base
    recomputed: Column = is_prefill & (before < most_before)
    return recomputed
