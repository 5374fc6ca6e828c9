"""Ticks: durations as whole numbers, whose sums leave no remainder, and when steps start and end in them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from cbsim.base.units import TICKS_PER_S
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
