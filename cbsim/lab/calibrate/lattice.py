"""Lattice: timings of attention on a grid of sizes, its gaps filled by a formula, thinned to a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cbsim.cost.attention import DecodeAttention, FusedAttention, PrefillAttention
from cbsim.cost.attention_grid import Table
from cbsim.cost.step_columns import Floats, StepColumns, StepShape
from cbsim.lab.calibrate.point import Op, Point

Sizes = tuple[int, ...]

MIN_FILLED = 0.15
"""Share of all combinations of sizes that must have been timed to speak of a grid."""
MIN_KNOTS = 3
"""Fewest sizes along each axis."""
TOLERANCE = 0.01
"""A knot is left out if a table without it errs by no more than this share,"""
TOLERATED_SHARE = 0.95
"""in this share of the places where it stands."""


@dataclass(frozen=True, slots=True)
class Lattice:
    """Timings over all combinations of some sizes, NaN where none was made."""

    axes: tuple[Floats, ...]
    seconds: Floats
    has_decodes: bool
    """Whether the last two axes are the context of each decode and their number."""

    @classmethod
    def of(cls, timings: dict[Sizes, float], has_decodes: bool) -> Lattice:
        """Timings by sizes."""
        columns = np.array(list(timings)).T
        axes = [np.unique(column) for column in columns]
        seconds = np.full([len(axis) for axis in axes], np.nan)
        seconds[tuple(map(np.searchsorted, axes, columns))] = list(timings.values())
        return cls(tuple(axis.astype(np.float64) for axis in axes), seconds, has_decodes)

    @property
    def is_grid(self) -> bool:
        """Whether enough combinations were timed."""
        share = float(np.isfinite(self.seconds).mean())
        return share >= MIN_FILLED and min(self.seconds.shape) >= MIN_KNOTS


class LatticeFormula(NamedTuple):
    """The formula of each regime, by sizes as a lattice has them."""

    decode: DecodeAttention
    prefill: PrefillAttention
    fused: FusedAttention | None

    def of(self, lattice: Lattice) -> Floats:
        """Seconds over all combinations of a lattice's sizes."""
        mesh = np.meshgrid(*lattice.axes, indexing="ij")
        sizes = [axis.ravel().astype(np.int64) for axis in mesh]
        none = np.zeros_like(sizes[0])
        tokens, before = (none, none) if len(sizes) == 2 and lattice.has_decodes else sizes[:2]
        context, decodes = sizes[-2:] if lattice.has_decodes else (none, none)
        rows = np.stack([tokens, before, context, decodes], axis=1).tolist()
        columns = StepColumns.from_shapes(
            [StepShape(((q, x),) if q else (), 0, n, k * n, k if n else 0) for q, x, k, n in rows]
        )
        seconds = np.maximum(self.decode.at(columns), self.prefill.at(columns))
        if len(sizes) == 4 and self.fused is not None:
            seconds = np.maximum(seconds, self.fused.at(columns, self.prefill.tile))
        return seconds.reshape(mesh[0].shape)


def lattices_of(points: Sequence[Point]) -> dict[Op, Lattice]:
    """The regimes that were timed over a grid."""
    times: dict[Op, dict[Sizes, float]] = {}
    for point in points:
        sizes = _sizes(point)
        if sizes is not None:
            times.setdefault(point.op, {})[sizes] = point.t_median_s
    lattices = {op: Lattice.of(timings, op != "prefill") for op, timings in times.items()}
    return {op: lattice for op, lattice in lattices.items() if lattice.is_grid}


def _sizes(point: Point) -> Sizes | None:
    """Chunk, its context, the context of each decode and their number, as far as the point has them."""
    if point.op not in ("decode", "prefill", "mixed") or len(point.chunks) > 1:
        return None
    decodes: Sizes = ()
    if point.num_decodes:
        if point.max_decode_context * point.num_decodes != point.decode_context:
            return None
        decodes = (point.max_decode_context, point.num_decodes)
    return (*(point.chunks[0] if point.chunks else ()), *decodes)


def filled(lattice: Lattice, formula: LatticeFormula) -> Lattice:
    """Every combination, from the timings around it along one axis after the other.

    Along a chunk's context and the decodes' context first: the number of decodes and of tokens decide how a
    launch is cut into blocks, so what the formula misses there leaps from one number to the next.
    """
    seconds = formula.of(lattice)
    ratio = np.log(lattice.seconds / seconds)
    order = {2: (0, 1) if lattice.has_decodes else (1, 0), 4: (1, 2, 0, 3)}[ratio.ndim]
    for beyond_ends in (False, True):
        for axis in order:
            ratio = np.apply_along_axis(_bridged, axis, ratio, lattice.axes[axis], beyond_ends)
    return replace(lattice, seconds=seconds * np.exp(ratio))


def refined(lattice: Lattice, formula: LatticeFormula) -> Lattice:
    """More knots along the number of decodes, halfway between two: the formula bends there, a line can't."""
    decodes = lattice.axes[-1]
    middle = 0.5 * (decodes[1:] + decodes[:-1])
    finer = np.sort(np.concatenate([decodes, middle[middle % 1 == 0]]))
    ratio = lattice.seconds / formula.of(lattice)
    turned = np.apply_along_axis(lambda values: np.interp(finer, decodes, values), -1, ratio)
    fine = Lattice((*lattice.axes[:-1], finer), turned, has_decodes=True)
    return replace(fine, seconds=formula.of(fine) * turned)


def _bridged(ratio: Floats, knots: Floats, beyond_ends: bool) -> Floats:
    known = np.isfinite(ratio)
    if known.all() or not known.any():
        return ratio
    bridged = np.interp(knots, knots[known], ratio[known])
    if not beyond_ends:
        bridged[(knots < knots[known][0]) | (knots > knots[known][-1])] = np.nan
    return bridged


def thinned(lattice: Lattice) -> Table:
    """The table with as few knots as the tolerance allows."""
    axes = list(lattice.axes)
    seconds = _monotone(lattice.seconds)
    for axis in range(seconds.ndim):
        kept = _needed(axes[axis], np.moveaxis(seconds, axis, 0).reshape(len(axes[axis]), -1))
        axes[axis] = axes[axis][kept]
        seconds = np.take(seconds, kept, axis=axis)
    rounded = tuple(float(f"{value:.5g}") for value in seconds.flat)
    return Table(axes=tuple(tuple(axis.tolist()) for axis in axes), seconds=rounded)


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
