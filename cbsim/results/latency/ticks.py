"""Ticks: durations as whole numbers, so that their sums leave no remainder, whatever the order."""

from __future__ import annotations

import math

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
