"""Tables from whole lattices: made monotone, needless knots left out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cbsim.cost.attention_grid import Table
from cbsim.cost.step_columns import Floats
from cbsim.lab.calibrate.lattice import Lattice

TOLERANCE = 0.01
"""A knot is left out if a table without it errs by no more than this share,"""
TOLERATED_SHARE = 0.95
"""in so many of the places where it stands."""


def thinned(lattice: Lattice) -> Table:
    """The table with as few knots as the tolerance allows."""
    axes = list(lattice.axes)
    seconds = _monotone(lattice.seconds)
    for axis in range(seconds.ndim):
        kept = _needed(axes[axis], np.moveaxis(seconds, axis, 0).reshape(len(axes[axis]), -1))
        axes[axis] = axes[axis][kept]
        seconds = np.take(seconds, kept, axis=axis)
    rounded = np.array([float(f"{value:.5g}") for value in seconds.ravel()])
    return Table(
        axes=tuple(tuple(axis.tolist()) for axis in axes),
        seconds=tuple(rounded.tolist()),
    )


def _monotone(seconds: Floats) -> Floats:
    """The middle between the lowest monotone table above and the highest one below."""
    for axis in range(seconds.ndim):
        above = np.maximum.accumulate(seconds, axis=axis)
        below = np.flip(np.minimum.accumulate(np.flip(seconds, axis), axis=axis), axis)
        seconds = 0.5 * (above + below)
    return seconds


def _needed(knots: Floats, lines: Floats) -> NDArray[np.int64]:
    """Knots to keep, greedily from the first: each as far on as the lines between stay within tolerance."""
    kept = [0]
    while kept[-1] < len(knots) - 1:
        start = kept[-1]
        end = start + 1
        while end + 1 < len(knots) and _is_straight(knots, lines, start, end + 1):
            end += 1
        kept.append(end)
    return np.array(kept)


def _is_straight(knots: Floats, lines: Floats, start: int, end: int) -> bool:
    weight = ((knots[start + 1 : end] - knots[start]) / (knots[end] - knots[start]))[:, None]
    between = lines[start] + weight * (lines[end] - lines[start])
    inner = lines[start + 1 : end]
    return bool((np.abs(between - inner) <= TOLERANCE * inner).mean() >= TOLERATED_SHARE)
