"""StepTimes: when the steps of a replica start and end, in ticks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np

from cbsim.results.latency.ticks import RangeSums, Ticks
from cbsim.results.run_log import Column


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
        return np.searchsorted(self._scheduled_at_s, at_s)

    @cached_property
    def _scheduled_at_s(self) -> Column:
        return self._steps["scheduled_at_s"]
