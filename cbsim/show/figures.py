"""The figures of a summary that pictures show: title, unit and which way is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cbsim.base.units import MS_PER_S

SAME = 0.005
"""Figures nearer to each other than this share of the better one are taken for the same."""


@dataclass(frozen=True, slots=True)
class PicturedFigure:
    """A figure of the flattened summary in the unit it is drawn in."""

    column: str
    title: str
    unit: str
    scale: float
    better: Literal["higher", "lower"]

    @property
    def label(self) -> str:
        """What an axis says."""
        return f"{self.title} ({self.unit})"


GOODPUT = PicturedFigure("goodput_per_s", "goodput", "requests/s within SLO", 1, "higher")
ATTAINMENT = PicturedFigure("slo_attainment", "within SLO", "% of requests", 100, "higher")
THROUGHPUT = PicturedFigure("output_token_throughput_per_s", "throughput", "output tokens/s", 1, "higher")
TTFT = PicturedFigure("ttft_s.p99", "TTFT p99", "s", 1, "lower")
TPOT = PicturedFigure("tpot_s.p99", "TPOT p99", "ms", MS_PER_S, "lower")
ITL = PicturedFigure("itl_s.p99", "ITL p99", "ms", MS_PER_S, "lower")
