"""Spans: the slices of each visit as ranges of steps, and when steps start and end in whole ticks."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np

from cbsim.base.units import TICKS_PER_S
from cbsim.results.latency.windows import Stretch, Table
from cbsim.results.run_log import Column

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
    """When the steps of a stretch start and end, by their places there, in ticks."""

    def __init__(self, stretch: Stretch, origin_s: float, ticks: Ticks) -> None:
        """`origin_s`, whole seconds, is where ticks are counted from."""
        self.origin_s = origin_s
        self.ticks = ticks
        self._steps, self._replicas = stretch.steps, stretch.replicas
        self.duration_s = stretch.steps["duration_s"]
        self._start_s = stretch.steps["start_s"]
        after_idle = np.flatnonzero(self._start_s[1:] > self._start_s[:-1] + self.duration_s[:-1]) + 1
        self.idle = RangeSums(after_idle, self.start(after_idle) - self.end(after_idle - 1))
        """Ticks before a step in which no step was under way on its replica; of no use for its first step."""

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

    def last_ended(self, at_s: Column, replica: Column) -> Column:
        """The last step of a replica that ended at or before each instant, seconds; the one before all of its
        steps if none did.
        """
        return self._places(self._start_s + self.duration_s, at_s, replica, "right") - 1

    def first_decided(self, at_s: Column, replica: Column) -> Column:
        """The first step of a replica decided at or after each instant, seconds; the one behind all of its
        steps if none was.
        """
        return self._places(self._steps["scheduled_at_s"], at_s, replica, "left")

    def _places(
        self, rising: Column, at_s: Column, replica: Column, side: Literal["left", "right"]
    ) -> Column:
        """Where instants stand among those of steps of a replica."""
        places = np.zeros(len(at_s), dtype=np.int64)
        for each in self._replicas if len(at_s) else ():
            rows = np.flatnonzero(replica == each.number)
            places[rows] = each.steps.start + np.searchsorted(rising[each.steps], at_s[rows], side=side)
        return places


_TOKENS = 2**32
"""More than any visit has computed."""


class Spans(NamedTuple):
    """Ranges of steps, by visit and then in the order of steps; a prompt slice is a range of one step."""

    visit: Column
    first: Column
    last: Column
    prefill: Column
    """The row in `Stretch.prefills`; -1 for decodes."""
    begins: Column
    """Whether a running period begins: at admission, and when it is resumed."""
    stop: Column
    """The last step of the running period, if it ends with this span; else `last`."""
    is_recompute: Column
    """Whether a prompt slice begins with tokens that were computed before a preemption."""

    def only(self, chosen: Column) -> Spans:
        """The chosen rows."""
        return Spans(*(column[chosen] for column in self))


def spans_of(stretch: Stretch, times: StepTimes, chunks: RangeSums, num_prompt_tokens: Column) -> Spans:
    """The spans of a stretch's visits; `chunks` counts, last, the steps without decodes.

    Who decodes there first, of `num_prompt_tokens` by visit, came with its prompt computed elsewhere.
    """
    mine, decodes = stretch.prefills_of_visits, stretch.decodes
    visit = np.concatenate([stretch.prefills["visit"][mine], decodes["visit"]])
    first = np.concatenate([stretch.prefills["step"][mine], decodes["first_step"]])
    last = np.concatenate([stretch.prefills["step"][mine], decodes["last_step"]])
    prefill = np.concatenate([mine, np.full(len(decodes["visit"]), -1)])
    order = np.argsort(_key(visit, first, times), kind="stable")
    visit, first, last, prefill = (column[order] for column in (visit, first, last, prefill))
    begins = np.ones(len(visit), dtype=bool)
    begins[1:] = visit[1:] != visit[:-1]
    spans = Spans(visit, first, last, prefill, begins, last, np.zeros(len(visit), dtype=bool))
    if not len(stretch.preempted["visit"]):
        return spans
    begins, stop = _periods(spans, times, stretch.preempted, stretch.resumed)
    is_recompute = _recomputed(spans, stretch.prefills, chunks, num_prompt_tokens)
    return spans._replace(begins=begins, stop=stop, is_recompute=is_recompute)


def _key(visit: Column, step: Column, times: StepTimes) -> Column:
    """Rises by visit, then by step."""
    key: Column = visit.astype(np.int64) * (len(times) + 1) + step
    return key


def _periods(spans: Spans, times: StepTimes, preempted: Table, resumed: Table) -> tuple[Column, Column]:
    """`begins` and `stop` of spans, by the events of these visits."""
    visit, step = spans.visit, resumed["step"]
    step = np.where(step < 0, times.first_decided(resumed["time_s"], resumed["replica"]), step)
    resumptions = np.sort(_key(resumed["visit"], step, times))
    num_before = np.searchsorted(resumptions, _key(visit, spans.first, times), side="right")
    begins = spans.begins.copy()
    begins[1:] |= num_before[1:] != num_before[:-1]
    ending = np.flatnonzero(begins[1:] & ~spans.begins[1:])
    # A period that began with the n-th resumption ends with the preemption after it.
    nth = num_before[ending] - np.searchsorted(resumed["visit"], visit[ending])
    row = np.searchsorted(preempted["visit"], visit[ending]) + nth
    stop = spans.last.copy()
    ended = times.last_ended(preempted["time_s"][row], preempted["replica"][row])
    stop[ending] = np.maximum(stop[ending], ended)
    return begins, stop


def of_prefills(spans: Spans, prefills: Table, name: str) -> Column:
    """A column of `Stretch.prefills` for each span; 0 for decodes."""
    values = np.append(prefills[name], 0)
    return values[spans.prefill]  # Decodes have -1, the place of that 0.


def _recomputed(spans: Spans, prefills: Table, chunks: RangeSums, num_prompt_tokens: Column) -> Column:
    """`is_recompute` of spans."""
    is_prefill = spans.prefill >= 0
    before, tokens = (of_prefills(spans, prefills, name) for name in ("num_computed_tokens", "num_tokens"))
    *_, alone = chunks.over(spans.first, spans.last)
    decoded = np.where(is_prefill, 0, spans.last - spans.first + 1 - alone)
    num_decoded = np.cumsum(decoded)
    is_known = is_prefill | np.append(True, spans.visit[1:] != spans.visit[:-1])
    known = np.where(is_prefill, before + tokens, num_prompt_tokens[spans.visit] + decoded)
    last_known = np.maximum.accumulate(np.where(is_known, np.arange(len(is_known)), 0))
    num_computed = known[last_known] + num_decoded - num_decoded[last_known]
    base = spans.visit.astype(np.int64) * _TOKENS
    most = np.maximum.accumulate(base + num_computed)
    most_before = np.concatenate([[0], most[:-1]]) - base
    recomputed: Column = is_prefill & (before < most_before)
    return recomputed
