"""How sizes are spread over a range: grids from coarse to fine, Latin hypercubes, contexts as in traffic."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TypeVar, overload

import numpy as np
from numpy.typing import NDArray

A = TypeVar("A")
B = TypeVar("B")


@overload
def coarse_to_fine(first: Sequence[A]) -> list[A]: ...
@overload
def coarse_to_fine(first: Sequence[A], second: Sequence[B]) -> list[tuple[A, B]]: ...
def coarse_to_fine(first: Sequence[A], second: Sequence[B] | None = None) -> list[A] | list[tuple[A, B]]:
    """A range, or the grid of two, its ends first, then its middle, its quarters and so on."""
    if second is None:
        depth = _depths(len(first))
        return [first[i] for i in sorted(range(len(first)), key=lambda i: (depth[i], i))]
    depths = _depths(len(first)), _depths(len(second))
    places = sorted(
        product(range(len(first)), range(len(second))),
        key=lambda place: (depths[0][place[0]] + depths[1][place[1]], place),
    )
    return [(first[i], second[j]) for i, j in places]


def latin_hypercube(
    rng: np.random.Generator, count: int, low: Sequence[float], high: Sequence[float]
) -> list[list[float]]:
    """`count` points between `low` and `high`, positive, evenly spread over the logarithm of each axis.

    McKay, Beckman and Conover, Technometrics 21(2), 1979: cut into `count` shares, each axis has a point in
    every share.
    """
    bottom, top = np.log(np.array(low, dtype=float)), np.log(np.maximum(low, high))
    shares = np.stack([rng.permutation(count) for _ in low], axis=1)
    places: NDArray[np.float64] = (shares + rng.random(shares.shape)) / count
    rows: list[list[float]] = np.exp(bottom + places * (top - bottom)).tolist()
    return rows


def spread_contexts(rng: np.random.Generator, count: int, mean: float, max_context: int) -> tuple[int, ...]:
    """Log-normal contexts, the longest 2 to 3.5 times the mean in a large batch, as in recorded traffic."""
    sigma = rng.uniform(0.35, 0.6)
    drawn = rng.lognormal(0.0, sigma, max(1, count))
    scaled = np.clip(np.rint(drawn / drawn.mean() * mean), 1, max_context)
    return tuple(int(context) for context in scaled)


def _depths(count: int) -> list[int]:
    """Of each place how many halvings it takes to reach it; 0 for the two ends."""
    depths = [0] * count
    spans = [(0, count - 1)]
    depth = 1
    while spans:
        halves = []
        for first, last in spans:
            if last - first < 2:
                continue
            middle = (first + last) // 2
            depths[middle] = depth
            halves += [(first, middle), (middle, last)]
        spans = halves
        depth += 1
    return depths
