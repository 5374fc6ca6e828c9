"""Lattice: timings of attention that lie on a grid of sizes, and what a formula says of the gaps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cbsim.cost.attention import DecodeAttention, FusedAttention, PrefillAttention
from cbsim.cost.step_columns import Floats, StepColumns
from cbsim.lab.calibrate.point import Op, Point

Sizes = tuple[int, ...]

MIN_FILLED = 0.15
"""Share of all combinations of sizes that must have been timed to speak of a grid."""
MIN_KNOTS = 3
"""Fewest sizes along each axis."""


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
        columns = np.array(list(timings))
        axes = tuple(np.unique(column) for column in columns.T)
        seconds = np.full([len(axis) for axis in axes], np.nan)
        places = tuple(np.searchsorted(axis, column) for axis, column in zip(axes, columns.T, strict=True))
        seconds[places] = list(timings.values())
        return cls(tuple(axis.astype(np.float64) for axis in axes), seconds, has_decodes)

    @property
    def is_grid(self) -> bool:
        """Whether enough combinations were timed."""
        share = float(np.isfinite(self.seconds).mean())
        return share >= MIN_FILLED and min(self.seconds.shape) >= MIN_KNOTS


class LatticeFormula:
    """The formula of each regime, by sizes as a lattice has them; contexts of decodes are sums."""

    def __init__(
        self, decode: DecodeAttention, prefill: PrefillAttention, fused: FusedAttention | None
    ) -> None:
        self._decode, self._prefill, self._fused = decode, prefill, fused

    def of(self, lattice: Lattice) -> Floats:
        """Seconds over all combinations of a lattice's sizes."""
        return self.over(lattice.axes, _total_context(lattice.axes, lattice.has_decodes))

    def over(self, axes: Sequence[Floats], total_context: Floats | None) -> Floats:
        """Seconds over all combinations of sizes; `total_context` in place of the last axis' own."""
        mesh = np.meshgrid(*axes, indexing="ij")
        shape = mesh[0].shape
        flat = [axis.ravel().astype(np.int64) for axis in mesh]
        zeros = np.zeros(len(flat[0]), dtype=np.int64)
        if len(axes) == 2 and total_context is None:
            tokens, context, decodes, total = flat[0], flat[1], zeros, zeros
        elif len(axes) == 2:
            tokens, context, decodes, total = zeros, zeros, flat[1], np.asarray(total_context).ravel()
        else:
            tokens, context, _, decodes = flat
            total = np.asarray(total_context).ravel()
        columns = StepColumns(
            chunks=[((int(q), int(x)),) if q else () for q, x in zip(tokens, context, strict=True)],
            num_finishing_chunks=zeros,
            num_decodes=decodes,
            decode_context=total.astype(np.int64),
            max_decode_context=np.ceil(total / np.maximum(decodes, 1)).astype(np.int64),
        )
        decode, prefill = self._decode.at(columns), self._prefill.at(columns)
        seconds = np.maximum(decode, prefill)
        if len(axes) == 4 and self._fused is not None:
            seconds = np.maximum(seconds, self._fused.at(columns, self._prefill.tile))
        return seconds.reshape(shape)


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
    return Lattice(lattice.axes, seconds * np.exp(ratio), lattice.has_decodes)


def refined(lattice: Lattice, formula: LatticeFormula) -> Lattice:
    """More knots along the number of decodes, halfway between two: the formula bends there, a line can't."""
    decodes = lattice.axes[-1]
    middle = 0.5 * (decodes[1:] + decodes[:-1])
    finer = np.sort(np.concatenate([decodes, middle[middle % 1 == 0]]))
    axes = (*lattice.axes[:-1], finer)
    ratio = lattice.seconds / formula.of(lattice)
    turned = np.apply_along_axis(lambda values: np.interp(finer, decodes, values), -1, ratio)
    return Lattice(axes, formula.over(axes, _total_context(axes, True)) * turned, has_decodes=True)


def _bridged(ratio: Floats, knots: Floats, beyond_ends: bool) -> Floats:
    known = np.isfinite(ratio)
    if known.all() or not known.any():
        return ratio
    bridged = np.interp(knots, knots[known], ratio[known])
    if not beyond_ends:
        bridged[(knots < knots[known][0]) | (knots > knots[known][-1])] = np.nan
    return bridged


def _total_context(axes: Sequence[Floats], has_decodes: bool) -> Floats | None:
    """Over all combinations: decodes times the context of each; `None` for chunks alone."""
    if not has_decodes:
        return None
    mesh = np.meshgrid(*axes, indexing="ij")
    return mesh[-2] * mesh[-1]
