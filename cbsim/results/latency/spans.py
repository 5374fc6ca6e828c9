"""Spans: the slices of each request as ranges of steps, and when steps start and end in whole ticks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from cbsim.base.units import TICKS_PER_S
from cbsim.results.run_log import PREEMPTED, RESUMED, Column, Slices

_MOST_BITS = 61
"""Most bits of a run's length in ticks; an int64 has 63."""


class Ticks:
    """A length of tick, a power of two seconds, in which a whole run can be counted without overflow."""

    def __init__(self, span_s: float) -> None:
        """`span_s` is how long the run lasts; up to a year of it is counted in `TICKS_PER_S`.

        Ticks of a longer one are as much longer, and still finer than its instants, which are doubles.
        """
        _, exponent = math.frexp(span_s)
        self.per_s = min(float(TICKS_PER_S), math.ldexp(1.0, _MOST_BITS - exponent))

    def of(self, seconds: Column) -> Column:
        """The nearest tick of each, int64."""
        ticks = np.multiply(seconds, self.per_s)
        np.rint(ticks, out=ticks)
        return ticks.astype(np.int64)

    def seconds(self, ticks: Column) -> Column:
        """Ticks in seconds; exact for durations of less than 2**53 ticks (more than a day)."""
        seconds: Column = ticks / self.per_s
        return seconds


class RangeSums:
    """Sums over ranges of steps of figures that only some steps have."""

    def __init__(self, steps: Column, *figures: Column) -> None:
        """`steps`: the numbers of the steps that have any, rising; each figure: their values, int64."""
        self._steps = steps
        self._up_to = [np.concatenate([[0], np.cumsum(figure)]) for figure in figures]

    def over(self, first: Column, last: Column) -> list[Column]:
        """The sum of each figure over steps `first` to `last`, both included; 0 where `last` is before."""
        if not len(self._steps):
            return [np.zeros(len(first), dtype=np.int64) for _ in self._up_to]
        begin = np.searchsorted(self._steps, first)
        end = np.maximum(begin, np.searchsorted(self._steps, last, side="right"))
        return [up_to[end] - up_to[begin] for up_to in self._up_to]


class StepTimes:
    """Steps by their numbers, which are their places in the columns of one replica."""

    def __init__(self, steps: Mapping[str, Column], origin_s: float, ticks: Ticks) -> None:
        """`origin_s`, whole seconds, is where ticks are counted from."""
        self.origin_s = origin_s
        self.ticks = ticks
        self._steps = steps
        self.duration_s = steps["duration_s"]
        self._start_s = steps["start_s"]
        after_idle = np.flatnonzero(self._start_s[1:] > self._start_s[:-1] + self.duration_s[:-1]) + 1
        self.idle = RangeSums(after_idle, self.start(after_idle) - self.end(after_idle - 1))
        """Ticks before a step in which no step was under way."""

    def __len__(self) -> int:
        return len(self._start_s)

    def at(self, seconds: Column) -> Column:
        """Instants in ticks."""
        return self.ticks.of(seconds - self.origin_s)

    def start(self, steps: Column | slice) -> Column:
        """The instants at which steps start."""
        return self.at(self._start_s[steps])

    def end(self, steps: Column | slice) -> Column:
        """The instants at which they end."""
        return self.at(self._start_s[steps] + self.duration_s[steps])

    def length(self, steps: Column | slice) -> Column:
        """How long they take."""
        length = self.end(steps)
        length -= self.start(steps)
        return length

    def last_ended(self, at_s: Column) -> Column:
        """The last step that ended at or before each instant, seconds; -1 if none did."""
        return np.searchsorted(self._start_s + self.duration_s, at_s, side="right") - 1

    def first_decided(self, at_s: Column) -> Column:
        """The first step decided at or after each instant, seconds; their number if none was."""
        return np.searchsorted(self._steps["scheduled_at_s"], at_s)


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
    slices: Slices,
    times: StepTimes,
    chunks: RangeSums,
    preemptions: Preemptions | None,
    num_prompt_tokens: Column,
) -> Spans:
    """The spans of a replica; `chunks` counts, last, the steps without decodes.

    Who decodes there first, of `num_prompt_tokens` by request, came with its prompt computed elsewhere.
    """
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
    return spans._replace(
        begins=begins, stop=stop, is_recompute=_recomputed(spans, slices, chunks, num_prompt_tokens)
    )


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


def of_prefills(spans: Spans, slices: Slices, name: str) -> Column:
    """A column of `Slices.prefills` for each span; 0 for decodes."""
    values = np.append(slices.prefills[name], 0)
    return values[spans.prefill]  # Decodes have -1, the place of that 0.


def _recomputed(spans: Spans, slices: Slices, chunks: RangeSums, num_prompt_tokens: Column) -> Column:
    """`is_recompute` of spans."""
    is_prefill = spans.prefill >= 0
    before, tokens = (of_prefills(spans, slices, name) for name in ("num_computed_tokens", "num_tokens"))
    *_, alone = chunks.over(spans.first, spans.last)
    decoded = np.where(is_prefill, 0, spans.last - spans.first + 1 - alone)
    num_decoded = np.cumsum(decoded)
    is_known = is_prefill | np.append(True, spans.request[1:] != spans.request[:-1])
    known = np.where(is_prefill, before + tokens, num_prompt_tokens[spans.request] + decoded)
    last_known = np.maximum.accumulate(np.where(is_known, np.arange(len(is_known)), 0))
    num_computed = known[last_known] + num_decoded - num_decoded[last_known]
    base = spans.request.astype(np.int64) * _TOKENS
    most = np.maximum.accumulate(base + num_computed)
    most_before = np.concatenate([[0], most[:-1]]) - base
    recomputed: Column = is_prefill & (before < most_before)
    return recomputed
