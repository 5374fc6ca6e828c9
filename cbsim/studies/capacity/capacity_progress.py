"""CapacityProgress: how far a search for capacities is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class CapacityProgress:
    """The state of one of the two phases, told at its beginning and after each of its tasks."""

    phase: Literal["searches", "curves"]
    """First each replicate is searched; then the curves are completed, in as many rounds as that takes."""
    num_done: int
    num_tasks: int
    """Of the phase, or of this round of it."""
    elapsed_s: float
    """Wall-clock seconds since the phase, or the round, began."""

    @property
    def time_left_s(self) -> float | None:
        """Wall-clock seconds to the end of it at the pace so far; `None` before the first task is done."""
        if not self.num_done:
            return None
        return self.elapsed_s / self.num_done * (self.num_tasks - self.num_done)
