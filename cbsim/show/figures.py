"""Figures: what tables and pictures show of a summary: its name, its unit, and which way is better."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from cbsim.base.units import MS_PER_S
from cbsim.show.text import MISSING, format_figure, format_share

SAME = 0.005
"""Figures nearer to each other than this share of the better one are taken for the same."""
SCALES = {"s": 1, "ms": MS_PER_S}
LATENCIES = {
    "queue_s": ("queue", "s"),
    "ttft_s": ("TTFT", "s"),
    "tpot_s": ("TPOT", "ms"),
    "itl_s": ("ITL", "ms"),
    "max_itl_s": ("longest ITL", "ms"),
    "e2e_s": ("E2E", "s"),
}
"""What each latency is called, and the unit it is shown in: a key of `SCALES`."""


@dataclass(frozen=True, slots=True)
class SummaryFigure:
    """A figure of the flattened summary in the unit it is shown in."""

    key: str
    """In the flattened summary, as `ttft_s.p99`."""
    title: str
    """With its unit."""
    form: Callable[[Any], str] = format_figure
    better: Callable[[Iterable[float]], float] | None = None
    """`min` or `max` where one figure can be called the best."""
    scale: float = 1

    def show(self, value: float | None) -> str:
        """A value as text."""
        return MISSING if value is None else self.form(value * self.scale)

    def best(self, values: Iterable[float | None]) -> str | None:
        """The best of some values as text; `None` if they all read the same, or none can be called better."""
        known = [value for value in values if value is not None]
        if self.better is None or len({*map(self.show, known)} - {MISSING}) < 2:
            return None
        return self.show(self.better(known))


def latency(name: str, statistic: str = "") -> SummaryFigure:
    """A statistic of one of `LATENCIES`, or the latency itself."""
    title, unit = LATENCIES[name]
    key, told = (f"{name}.{statistic}", f"{title} {statistic}") if statistic else (name, title)
    return SummaryFigure(key, f"{told} ({unit})", better=min, scale=SCALES[unit])


MFU = SummaryFigure("mfu", "MFU", format_share)
MBU = SummaryFigure("mbu", "MBU", format_share)
COMPARED = (
    SummaryFigure("num_finished", "finished"),
    SummaryFigure("num_rejected", "rejected"),
    SummaryFigure("request_throughput_per_s", "throughput (req/s)", better=max),
    SummaryFigure("output_token_throughput_per_s", "output (tokens/s)", better=max),
    SummaryFigure("goodput_per_s", "goodput (req/s)", better=max),
    SummaryFigure("slo_attainment", "requests within SLO", format_share, max),
    *(latency(name, part) for name in ("ttft_s", "tpot_s", "itl_s", "e2e_s") for part in ("p50", "p99")),
    SummaryFigure("num_preemptions", "preemptions"),
    SummaryFigure("kv_utilization.mean", "KV use, mean", format_share),
    SummaryFigure("kv_utilization.max", "KV use, max", format_share),
    SummaryFigure("kv_waste.mean", "KV taken but empty", format_share, min),
)
"""What tells runs apart."""
GOODPUT = SummaryFigure("goodput_per_s", "goodput (requests/s within SLO)", better=max)
ATTAINMENT = SummaryFigure("slo_attainment", "within SLO (% of requests)", better=max, scale=100)
THROUGHPUT = SummaryFigure("output_token_throughput_per_s", "throughput (output tokens/s)", better=max)
TTFT, TPOT, ITL = (latency(name, "p99") for name in ("ttft_s", "tpot_s", "itl_s"))
"""As pictures name them."""
