"""Ticks: durations as whole numbers, so that their sums leave no remainder, whatever the order."""

from __future__ import annotations

import numpy as np

from cbsim.recorder import Column
from cbsim.units import TICKS_PER_S


def to_ticks(seconds: Column) -> Column:
    """The nearest tick of each, int64."""
    ticks = np.multiply(seconds, TICKS_PER_S)
    np.rint(ticks, out=ticks)
    return ticks.astype(np.int64)


def to_seconds(ticks: Column) -> Column:
    """Exact for durations up to a day (2**53 ticks)."""
    seconds: Column = ticks / TICKS_PER_S
    return seconds


class RangeSums:
    """Sums over ranges of steps of figures that only some steps have."""

    def __init__(self, steps: Column, *figures: Column) -> None:
        """The steps that have any, rising, and each figure there, int64."""
        self._steps = steps
        self._up_to = [np.concatenate([[0], np.cumsum(figure)]) for figure in figures]

    def over(self, first: Column, last: Column) -> list[Column]:
        """The sum of each figure over steps `first` to `last`, both included; 0 where `last` is before."""
        if not len(self._steps):
            return [np.zeros(len(first), dtype=np.int64) for _ in self._up_to]
        begin = np.searchsorted(self._steps, first)
        end = np.maximum(begin, np.searchsorted(self._steps, last, side="right"))
        return [up_to[end] - up_to[begin] for up_to in self._up_to]
