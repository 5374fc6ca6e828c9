"""Lengths: how many tokens prompts and answers (and how many turns sessions) have."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, model_validator

from cbsim.config.bounds import MAX_TOKENS
from cbsim.config.section import Section
from cbsim.workload.streams import Streams

if TYPE_CHECKING:
    from cbsim.workload.trace_reader import TraceTable

Z_90 = 1.2815515655446004
"""The 90th percentile of the standard normal distribution."""

Side = Literal["prompt", "output"]
Traces = Callable[[str], "TraceTable"]
"""Reads the trace that a path names."""
Sampler = Callable[[int], NDArray[Any]]
"""Draws the next `size` numbers; how many at a time doesn't change them."""


class FixedLengths(Section):
    """Always the same."""

    type: Literal["fixed"]
    value: int = Field(ge=1, le=MAX_TOKENS)
    """The number."""

    def sampler(self, streams: Streams, traces: Traces, side: Side) -> Sampler:
        """The value, every time."""
        return lambda size: np.full(size, self.value, dtype=np.int64)


class UniformLengths(Section):
    """Every whole number from `min` to `max` equally often."""

    type: Literal["uniform"]
    min: int = Field(ge=1, le=MAX_TOKENS)
    """The smallest number."""
    max: int = Field(ge=1, le=MAX_TOKENS)
    """The largest number."""

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.max < self.min:
            raise ValueError(f"max: got {self.max}; allowed: min ({self.min}) or more")
        return self

    def sampler(self, streams: Streams, traces: Traces, side: Side) -> Sampler:
        """Whole numbers, both ends included."""
        random = streams.generator()
        return lambda size: random.integers(self.min, self.max, size, endpoint=True)


class LognormalLengths(Section):
    """A lognormal distribution, rounded, and clipped to `min` and `max`.

    Its middle is given by `median` or `mean`, its width by `sigma` (of the logarithm) or `p90`, all before
    rounding and clipping.
    """

    type: Literal["lognormal"]
    median: float | None = Field(default=None, gt=0)
    """Half of the numbers are smaller."""
    mean: float | None = Field(default=None, gt=0)
    """Their mean; in place of `median`."""
    sigma: float | None = Field(default=None, ge=0)
    """Standard deviation of the natural logarithm."""
    p90: float | None = Field(default=None, gt=0)
    """Nine in ten are smaller; in place of `sigma`."""
    min: int = Field(default=1, ge=1, le=MAX_TOKENS)
    """Smaller ones become this."""
    max: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    """Larger ones become this; null is 100 million."""

    @model_validator(mode="after")
    def _check_parameters(self) -> Self:
        if (self.median is None) == (self.mean is None):
            raise ValueError("lognormal lengths: give one of median and mean")
        if (self.sigma is None) == (self.p90 is None):
            raise ValueError("lognormal lengths: give one of sigma and p90")
        if self.max is not None and self.max < self.min:
            raise ValueError(f"max: got {self.max}; allowed: min ({self.min}) or more")
        most = math.exp(Z_90**2 / 2)
        if self.p90 is not None and self.median is not None and self.p90 < self.median:
            raise ValueError(f"p90: got {self.p90:g}; allowed: at least the median ({self.median:g})")
        if self.p90 is not None and self.mean is not None and not 1 <= self.p90 / self.mean <= most:
            allowed = f"at least the mean ({self.mean:g}) and at most {most:.3f} times it"
            raise ValueError(f"p90: got {self.p90:g}; allowed: {allowed}")
        return self

    @property
    def log_mean_and_sigma(self) -> tuple[float, float]:
        """The normal distribution of the logarithm.

        The mean of a lognormal is exp(mu + sigma^2 / 2) and its p90 exp(mu + z sigma) with z = 1.2816; of the
        two solutions for a mean and a p90 the narrower is meant.
        """
        log_p90 = math.log(self.p90 or 1)
        if self.median is not None:
            mu = math.log(self.median)
            return mu, (log_p90 - mu) / Z_90 if self.sigma is None else self.sigma
        log_mean, sigma = math.log(self.mean or 1), self.sigma
        if sigma is None:
            sigma = Z_90 - math.sqrt(max(0.0, Z_90**2 - 2 * (log_p90 - log_mean)))
        return log_mean - sigma**2 / 2, sigma

    def sampler(self, streams: Streams, traces: Traces, side: Side) -> Sampler:
        """Rounded to the nearest whole number, then clipped."""
        random = streams.generator()
        mu, sigma = self.log_mean_and_sigma

        def draw(size: int) -> NDArray[Any]:
            numbers = np.rint(np.exp(mu + sigma * random.standard_normal(size)))
            return np.clip(numbers, self.min, self.max or MAX_TOKENS).astype(np.int64)

        return draw


class EmpiricalLengths(Section):
    """Values with weights, or the lengths found in a trace file.

    Where prompts and answers are drawn from the same file, each request takes both from one of its rows, so
    that their correlation is kept.
    """

    type: Literal["empirical"]
    values: list[Annotated[int, Field(ge=1, le=MAX_TOKENS)]] | None = Field(default=None, min_length=1)
    """The numbers that occur."""
    weights: list[Annotated[float, Field(ge=0)]] | None = None
    """How often each occurs, relative to the others; null for equally often."""
    path: str | None = None
    """A trace file of any format, in place of `values`."""

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if (self.values is None) == (self.path is None):
            raise ValueError("empirical lengths: give one of values and path")
        if self.weights is not None:
            check_weights(self.weights, 0 if self.values is None else len(self.values))
        return self

    def sampler(self, streams: Streams, traces: Traces, side: Side) -> Sampler:
        """By inversion, one random number for each draw; a file's rows from a stream of the file's own."""
        if self.path is None:
            return picker(streams, self.values or (), self.weights)
        trace = traces(self.path)
        values = trace.num_prompt_tokens if side == "prompt" else trace.num_output_tokens
        return picker(Streams(streams.seed, f"workload/rows/{self.path}"), values)


class MixtureLengths(Section):
    """Each number from one of several distributions, for lengths with more than one peak."""

    type: Literal["mixture"]
    parts: list[Lengths] = Field(min_length=1)
    """The distributions."""
    weights: list[Annotated[float, Field(ge=0)]]
    """How often each is drawn from, relative to the others."""

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        check_weights(self.weights, len(self.parts))
        return self

    def sampler(self, streams: Streams, traces: Traces, side: Side) -> Sampler:
        """Every part draws for every request, so that no stream's place hangs on which part was chosen."""
        samplers = [part.sampler(streams.child(str(i)), traces, side) for i, part in enumerate(self.parts)]
        pick = picker(streams.child("part"), range(len(samplers)), self.weights)
        return lambda size: np.stack([sampler(size) for sampler in samplers])[pick(size), np.arange(size)]


Lengths = Annotated[
    FixedLengths | UniformLengths | LognormalLengths | EmpiricalLengths | MixtureLengths,
    Field(discriminator="type"),
]
"""A distribution of whole numbers from 1 up.

Its `sampler` is one at the start of its stream; `side` is what to take from one of the `traces`.
"""
MixtureLengths.model_rebuild()


def largest(lengths: Lengths) -> int | None:
    """The largest number that is drawn; `None` where nothing but a file, or chance, says so."""
    match lengths:
        case FixedLengths():
            return lengths.value
        case EmpiricalLengths():
            return max(lengths.values) if lengths.values else None
        case MixtureLengths():
            return max((largest(part) or 0 for part in lengths.parts), default=0) or None
    return lengths.max


def picker(streams: Streams, values: ArrayLike, weights: ArrayLike | None = None) -> Sampler:
    """Draws from `values`, equally often or by weight."""
    random = streams.generator()
    choices = np.asarray(values)
    bounds = np.add.accumulate(np.ones(len(choices)) if weights is None else np.asarray(weights, float))
    bounds /= bounds[-1]
    return lambda size: choices[np.searchsorted(bounds, random.random(size), side="right")]


def check_weights(weights: list[float], num_wanted: int) -> None:
    """Raises `ValueError` unless there are as many weights as wanted and one is above 0."""
    if len(weights) != num_wanted:
        raise ValueError(f"weights: got {len(weights)}; allowed: one for each value, {num_wanted}")
    if sum(weights) <= 0:
        raise ValueError("weights: got 0 for all; allowed: a sum above 0")
