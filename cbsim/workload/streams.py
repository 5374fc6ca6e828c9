"""Streams: independent random numbers for each purpose, all from the experiment's one seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cbsim.workload.request import FloatColumn
from cbsim.workload.request_source import WorkloadConfig


@dataclass(frozen=True, slots=True)
class Streams:
    """Names a random stream: equal seed and purpose give equal numbers, whatever else is drawn elsewhere."""

    seed: int
    purpose: str

    def child(self, name: str) -> Streams:
        """The stream of a part of this purpose."""
        return Streams(self.seed, f"{self.purpose}/{name}")

    def generator(self) -> np.random.Generator:
        """A new generator at the start of the stream."""
        spawn_key = tuple(self.purpose.encode())
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence(self.seed, spawn_key=spawn_key)))


BLOCK = 1024
"""Times drawn at once."""


class ThinkTimes:
    """One for each request, drawn from the seed: whoever ends first, request n is thought about as long."""

    def __init__(self, config: WorkloadConfig, seed: int) -> None:
        self._mean_s, self._cv = config.think_time_s, config.think_time_cv
        self._random = Streams(seed, "think times").generator()
        self._drawn: list[float] = []

    def after(self, index: int) -> float:
        """Seconds from the end of a request, by its index, to its client's next one."""
        if not self._cv:
            return self._mean_s
        while index >= len(self._drawn):
            self._drawn += gamma_times(self._random, self._mean_s, self._cv, BLOCK).tolist()
        return self._drawn[index]


def gamma_times(random: np.random.Generator, mean_s: float, cv: float, size: int) -> FloatColumn:
    """Gamma-distributed times of a mean and a coefficient of variation: 0 all the same, 1 exponential."""
    if cv == 0:
        return np.full(size, mean_s)
    shape = 1 / cv**2
    return random.standard_gamma(shape, size) * (mean_s / shape)
