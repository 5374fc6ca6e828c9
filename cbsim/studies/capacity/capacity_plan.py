"""Plan: how a capacity is searched for."""

from __future__ import annotations

from dataclasses import dataclass

from cbsim.base.errors import ConfigError
from cbsim.studies.intervals import CONFIDENCE


@dataclass(frozen=True, slots=True)
class Plan:
    """Share, replicates and resolution of a search; raises `ConfigError` for values out of range."""

    share: float = 0.99
    """Share of requests that must meet the SLO."""
    num_replicates: int = 5
    tolerance: float = 0.05
    """Neighbouring rates differ by this share; between them attainment is interpolated."""
    num_requests: int | None = None
    """Of a trace: requests of each replicate; `None` for as many as the trace has."""
    confidence: float = CONFIDENCE

    def __post_init__(self) -> None:
        checks = (
            ("share", self.share, 0 < self.share < 1, "a number > 0 and < 1"),
            ("replicates", self.num_replicates, self.num_replicates >= 2, "an integer >= 2"),
            ("tolerance", self.tolerance, 0 < self.tolerance <= 1, "a number > 0 and <= 1"),
            ("requests", self.num_requests, (self.num_requests or 2) >= 2, "an integer >= 2"),
            ("confidence", self.confidence, 0 < self.confidence < 1, "a number > 0 and < 1"),
        )
        problems = [
            f"{name}: got {got}; expected {allowed}" for name, got, is_ok, allowed in checks if not is_ok
        ]
        if problems:
            raise ConfigError(*problems)

    @property
    def growth(self) -> float:
        """From one rung of the ladder of rates to the next, the rate grows by this factor."""
        return 1 + self.tolerance
