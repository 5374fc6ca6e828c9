"""Streams: independent random numbers for each purpose, all from the experiment's one seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


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
