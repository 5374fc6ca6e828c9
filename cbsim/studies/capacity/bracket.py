"""Bracket: between which two neighbours of a geometric ladder of rates an SLO ceases to hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

FIRST_STEP = 8
"""Rungs from the first rate to the next; then the distance doubles until the SLO fails."""


@dataclass(slots=True)
class Bracket:
    """What each rung tried has shown, in one replicate or over all: the share of requests that met the SLO.

    Attainment is taken to fall as the rate rises; where chance has it otherwise, the lowest rate that fails
    counts.
    """

    share: float
    """What the attainment must not be below."""
    bottom: int
    """The rung on which requests come one by one: the first that must be tried."""
    top: int
    """The rung on which they come all at once: the last worth trying."""
    attainment: dict[int, float] = field(default_factory=dict)

    @property
    def fails_at(self) -> int | None:
        """The lowest rung known to fail."""
        return min((rung for rung, met in self.attainment.items() if met < self.share), default=None)

    @property
    def holds_at(self) -> int | None:
        """The highest rung known to hold, below any that fails."""
        fails_at = self.fails_at
        holding = (rung for rung, met in self.attainment.items() if met >= self.share)
        return max((rung for rung in holding if fails_at is None or rung < fails_at), default=None)

    def next_rung(self) -> int | None:
        """The rung to try next; `None` when neighbours hold and fail, or the ladder has no more to tell."""
        fails_at, holds_at = self.fails_at, self.holds_at
        if holds_at is None:
            return self.bottom if fails_at is None else None
        first = min(self.top, max(0, self.bottom + 1))
        if fails_at is None:
            if holds_at < first:
                return first
            return (
                min(self.top, holds_at + max(FIRST_STEP, holds_at - first)) if holds_at < self.top else None
            )
        if fails_at - holds_at == 1:
            return None
        middle = (fails_at + holds_at) // 2
        if holds_at > self.bottom:
            return middle
        return max(middle, fails_at - max(FIRST_STEP, first - fails_at))

    def crossing(self, rate_per_s: Callable[[int], float]) -> float | None:
        """The rate where attainment falls below the share, in between two rungs by linear interpolation.

        `None` if it held on every rung; the bottom's rate if it failed on every one. `rate_per_s` is the rate
        at a rung.
        """
        fails_at, holds_at = self.fails_at, self.holds_at
        if fails_at is None:
            return None
        if holds_at is None:
            return rate_per_s(fails_at)
        above, below = self.attainment[holds_at], self.attainment[fails_at]
        low, high = rate_per_s(holds_at), rate_per_s(fails_at)
        return low + (high - low) * (above - self.share) / (above - below)
