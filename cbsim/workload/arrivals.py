"""Arrivals: when requests (or sessions) start, as endless streams of instants.

`rate_per_s` is always the mean over a long time, so that kinds of arrivals can be swapped at equal load.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import count, repeat
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from cbsim.base.units import S_PER_DAY
from cbsim.config.section import Section
from cbsim.workload.request import FloatColumn
from cbsim.workload.streams import Streams

_PERIODS_DRAWN = 256
LEAST_PER_BURST = 1e-4
"""Arrivals that bursts must have on average: all the empty ones are drawn too."""


class ConstantArrivals(Section):
    """One arrival every `1 / rate_per_s` seconds, the first at 0."""

    type: Literal["constant"]
    rate_per_s: float = Field(gt=0)
    """Arrivals a second."""

    def times(self, streams: Streams, size: int) -> Iterator[FloatColumn]:
        """Each is its place divided by the rate, so that no error adds up."""
        return (np.arange(start, start + size) / self.rate_per_s for start in count(step=size))


class PoissonArrivals(Section):
    """Independent arrivals: exponential times between them."""

    type: Literal["poisson"]
    rate_per_s: float = Field(gt=0)
    """Mean arrivals a second."""

    def times(self, streams: Streams, size: int) -> Iterator[FloatColumn]:
        """Sums of exponential gaps."""
        return _poisson(streams.generator(), self.rate_per_s, size)


class GammaArrivals(Section):
    """Gamma-distributed times between arrivals: cv 1 is Poisson, more is bursty, less is steady."""

    type: Literal["gamma"]
    rate_per_s: float = Field(gt=0)
    """Mean arrivals a second."""
    cv: float | None = Field(default=None, gt=0)
    """Coefficient of variation of the times between arrivals: standard deviation / mean; or give
    `burstiness`."""
    burstiness: float | None = Field(default=None, gt=0)
    """Shape of the gamma distribution, 1 / cv^2, as `vllm bench serve --burstiness` has it: 1 is Poisson,
    less is bursty, more is steady; or give `cv`."""

    @model_validator(mode="after")
    def _check_shape(self) -> Self:
        if (self.cv is None) == (self.burstiness is None):
            raise ValueError("gamma arrivals: give one of cv and burstiness")
        return self

    @property
    def shape(self) -> float:
        """Of the gamma distribution, whichever of the two is given."""
        if self.burstiness is not None:
            return self.burstiness
        assert self.cv is not None
        return 1 / self.cv**2

    def times(self, streams: Streams, size: int) -> Iterator[FloatColumn]:
        """Sums of gamma gaps."""
        random, shape = streams.generator(), self.shape
        return _summed(lambda: random.standard_gamma(shape, size) / (shape * self.rate_per_s))


class RampArrivals(Section):
    """Arrivals whose rate rises or falls to `rate_per_s` in the first `ramp_s` seconds, and stays there."""

    type: Literal["ramp"]
    rate_per_s: float = Field(gt=0)
    """Mean arrivals a second once the ramp is over."""
    ramp_s: float = Field(gt=0)
    """How long the ramp takes, seconds."""
    start_share: float = Field(default=0.0, ge=0)
    """The rate at the start, as a share of `rate_per_s`: 0.1 is a tenth, 2 twice as much."""
    curve: Literal["linear", "exponential"] = "linear"
    """Whether the rate changes by as much every second, or by as large a share."""
    burstiness: float = Field(default=1.0, gt=0)
    """Shape of the gamma-distributed times between arrivals at a steady rate: 1 is Poisson, less bursty."""

    @model_validator(mode="after")
    def _check_start(self) -> Self:
        if self.curve == "exponential" and not self.start_share:
            raise ValueError("ramp arrivals: got an exponential ramp from 0; allowed: start_share above 0")
        return self

    def times(self, streams: Streams, size: int) -> Iterator[FloatColumn]:
        """Sums of gamma gaps of mean 1, as instants by when so many arrivals are expected."""
        random, shape = streams.generator(), self.burstiness
        unit = _summed(lambda: random.standard_gamma(shape, size) / shape)
        return (self._instants(expected) for expected in unit)

    def _instants(self, expected: FloatColumn) -> FloatColumn:
        """When `expected` arrivals are to be expected: the inverse of the integral of the rate."""
        start, end, ramp_s = self.start_share * self.rate_per_s, self.rate_per_s, self.ramp_s
        if start == end:
            return expected / end
        if self.curve == "linear":
            on_ramp = (start + end) / 2 * ramp_s
            slope = (end - start) / ramp_s
            inside = np.minimum(expected, on_ramp)
            # The stable root of slope / 2 t^2 + start t = inside.
            rate = np.sqrt(np.maximum(0.0, start**2 + 2 * slope * inside))
            during = 2 * inside / np.maximum(start + rate, np.finfo(float).tiny)
        else:
            growth = math.log(end / start) / ramp_s
            on_ramp = (end - start) / growth
            during = np.log1p(growth * np.minimum(expected, on_ramp) / start) / growth
        beyond: FloatColumn = np.where(expected <= on_ramp, during, ramp_s + (expected - on_ramp) / end)
        return beyond


class OnOffArrivals(Section):
    """Bursts of Poisson arrivals with silence between them, as an interrupted Poisson process."""

    type: Literal["on_off"]
    rate_per_s: float = Field(gt=0)
    """Mean arrivals a second, silence included: within a burst (on_s + off_s) / on_s times as many come."""
    on_s: float = Field(gt=0)
    """Length of a burst, seconds."""
    off_s: float = Field(ge=0)
    """Length of the silence after it, seconds."""
    periods: Literal["fixed", "exponential"] = "fixed"
    """Whether every burst and silence has that length, or an exponential one of that mean."""

    @model_validator(mode="after")
    def _check_bursts(self) -> Self:
        mean = self.rate_per_s * (self.on_s + self.off_s)
        if mean < LEAST_PER_BURST:
            raise ValueError(
                f"on_off arrivals: got {mean:.3g} arrivals a burst on average; allowed: {LEAST_PER_BURST:g} "
                "or more"
            )
        return self

    def times(self, streams: Streams, size: int) -> Iterator[FloatColumn]:
        """Poisson arrivals on a clock that runs only during bursts, then moved by the silence before them."""
        burst_rate_per_s = self.rate_per_s * (self.on_s + self.off_s) / self.on_s
        on_time = _poisson(streams.child("bursts").generator(), burst_rate_per_s, size)
        if self.periods == "fixed":
            return (times + self.off_s * np.floor(times / self.on_s) for times in on_time)
        return self._moved_by_random_silence(on_time, streams)

    def _moved_by_random_silence(
        self, on_time: Iterator[FloatColumn], streams: Streams
    ) -> Iterator[FloatColumn]:
        on, off = streams.child("on").generator(), streams.child("off").generator()
        burst_ends, silence_before = np.zeros(1), np.zeros(1)
        for times in on_time:
            while burst_ends[-1] <= times[-1]:
                bursts, silences = (each.standard_exponential(_PERIODS_DRAWN) for each in (on, off))
                burst_ends = _extended(burst_ends, self.on_s * bursts)
                silence_before = _extended(silence_before, self.off_s * silences)
            yield times + silence_before[np.searchsorted(burst_ends, times, side="right") - 1]


class DailyArrivals(Section):
    """Poisson arrivals whose rate follows a cosine: a busy and a quiet time every day."""

    type: Literal["daily"]
    rate_per_s: float = Field(gt=0)
    """Mean arrivals a second over a whole period."""
    amplitude: float = Field(default=0.5, ge=0, le=1)
    """The rate swings between (1 - amplitude) and (1 + amplitude) times the mean."""
    peak_at_s: float = Field(default=0.0, ge=0)
    """Instant of a peak, seconds."""
    period_s: float = Field(default=S_PER_DAY, gt=0)
    """From peak to peak, seconds."""

    def times(self, streams: Streams, size: int) -> Iterator[FloatColumn]:
        """Thinning (Lewis and Shedler, 1979): arrivals at the peak rate, kept with odds rate : peak."""
        keep = streams.child("keep").generator()
        highest = 1 + self.amplitude
        for times in _poisson(streams.child("candidates").generator(), self.rate_per_s * highest, size):
            phase = 2 * math.pi * (times - self.peak_at_s) / self.period_s
            kept = times[keep.random(size) * highest < 1 + self.amplitude * np.cos(phase)]
            if len(kept):
                yield kept


class AllAtOnceArrivals(Section):
    """Everything arrives at 0, as in an offline benchmark."""

    type: Literal["all_at_once"]

    def times(self, streams: Streams, size: int) -> Iterator[FloatColumn]:
        """Zeros."""
        return repeat(np.zeros(size))


Arrivals = Annotated[
    ConstantArrivals
    | PoissonArrivals
    | GammaArrivals
    | RampArrivals
    | OnOffArrivals
    | DailyArrivals
    | AllAtOnceArrivals,
    Field(discriminator="type"),
]
"""A way for requests to arrive: its `times` are endless chunks of at most `size` instants, seconds.

They never fall, and `size` doesn't change them.
"""


def _poisson(random: np.random.Generator, rate_per_s: float, size: int) -> Iterator[FloatColumn]:
    return _summed(lambda: random.standard_exponential(size) / rate_per_s)


def _summed(draw_gaps: Callable[[], FloatColumn]) -> Iterator[FloatColumn]:
    """Running sums over all chunks, added one by one in order, so that chunks don't show in the last bit."""
    now = 0.0
    while True:
        gaps = draw_gaps()
        gaps[0] += now
        times = np.add.accumulate(gaps)
        now = times[-1]
        yield times


def _extended(sums: FloatColumn, parts: FloatColumn) -> FloatColumn:
    return np.concatenate([sums[:-1], np.add.accumulate(np.concatenate([sums[-1:], parts]))])
