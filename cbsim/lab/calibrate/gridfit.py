"""Attention tables from timings that form a grid, where they say more than a formula."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cbsim.cost.attention import DecodeAttention, FusedAttention, PrefillAttention
from cbsim.cost.attention_grid import AttentionGrid, ChunkTable, DecodeTable, MixedTable, Skew, Slopes, Table
from cbsim.cost.profile_record import chunks_together_s
from cbsim.cost.step_columns import Floats, StepColumns, StepShape
from cbsim.lab.calibrate.coefficients import clearly_best, soft_loss
from cbsim.lab.calibrate.point import Op, Point, columns_of, seconds_of
from cbsim.lab.calibrate.skewfit import USUAL_SPLITTING, Splitting

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


NUM_PARTS = 20
"""Parts of the timings of a grid, each left out once to see what the others say of it."""
NUM_COEFFICIENTS = 8
"""Of the formula of decodes, and about those of chunks."""


def fit_grid(
    points: Sequence[Point], formula: LatticeFormula, splitting: Splitting = USUAL_SPLITTING
) -> AttentionGrid | None:
    """Tables of attention timings, of each regime that was timed over a grid; `None` if decodes were not.

    Points of several chunks or of unequal contexts are left to the formula. What lies between timings follows
    the ratio of timing to formula, linear between its knots.
    """
    decode, prefill, fused = formula
    lattices = lattices_of(points)
    decode_lattice, chunk_lattice, mixed_lattice = (lattices.get(op) for op in ("decode", "prefill", "mixed"))
    is_whole = chunk_lattice is not None and mixed_lattice is not None
    if decode_lattice is None or not (is_whole or _beats_formula(decode_lattice, formula)):
        return None
    chunks = mixed = None
    if chunk_lattice is not None:
        token_s = prefill.per_token_s + prefill.beyond_per_token_s
        slopes = Slopes(per_pair_s=prefill.per_pair_s, per_token_s=token_s)
        table = ChunkTable(table=thinned(filled(chunk_lattice, formula)), slopes=slopes)
        if is_whole or (_beats_formula(chunk_lattice, formula) and _adds_up(table, prefill, points)):
            chunks = table
    if chunks is not None and mixed_lattice is not None and fused is not None:
        mixed = _mixed_table(thinned(refined(filled(mixed_lattice, formula), formula)), chunks, fused)
    decode_table = thinned(refined(filled(decode_lattice, formula), formula))
    skew = Skew(
        chain_s_per_token=mixed.skew.chain_s_per_token if mixed is not None else 0.0,
        tokens_per_s=_full_rate(decode_table),
        split_up_to=splitting.up_to,
    )
    slopes = Slopes(per_decode_s=decode.per_decode_s, per_context_token_s=decode.per_token_s)
    decodes = DecodeTable(table=decode_table, slopes=slopes, skew=skew)
    return AttentionGrid(decode=decodes, prefill=chunks, mixed=mixed)


def _mixed_table(table: Table, chunks: ChunkTable, fused: FusedAttention) -> MixedTable:
    slopes = Slopes(
        per_pair_s=fused.per_pair_s,
        per_token_s=fused.per_token_s,
        per_decode_s=fused.per_decode_s,
        per_context_token_s=fused.per_context_token_s + fused.beyond_per_context_token_s,
    )
    skew = Skew(chain_s_per_token=_chain_s_per_token(table), tokens_per_s=_full_rate(table), split_up_to=0)
    return MixedTable(table=table, slopes=slopes, skew=skew, crowding=_crowding(chunks.table, table))


def _beats_formula(lattice: Lattice, formula: LatticeFormula) -> bool:
    """Whether timings say clearly more of those left out between them than the formula does.

    It was fitted to all of them, so its errors count by n / (n - coefficients): generalised cross-validation
    (Craven and Wahba, Numerische Mathematik 31, 1979).
    """
    timed = np.flatnonzero(np.isfinite(lattice.seconds))
    measured = lattice.seconds.ravel()[timed]
    by_formula = formula.of(lattice).ravel()[timed]
    by_table = np.empty(len(timed))
    for number in range(NUM_PARTS):
        out = np.arange(len(timed)) % NUM_PARTS == number
        seconds = lattice.seconds.copy()
        seconds.ravel()[timed[out]] = np.nan
        by_table[out] = filled(replace(lattice, seconds=seconds), formula).seconds.ravel()[timed[out]]
    fitted = np.log(by_formula / measured) * len(timed) / max(len(timed) - NUM_COEFFICIENTS, 1)
    return clearly_best([soft_loss(fitted), soft_loss(np.log(by_table / measured))]) == 1


def _adds_up(chunks: ChunkTable, prefill: PrefillAttention, points: Sequence[Point]) -> bool:
    """Whether launches of several chunks are no farther from what a table of single ones says of them than
    from the formula; they are no part of the table.
    """
    several = [point for point in points if point.op == "prefill" and len(point.chunks) > 1]
    if not several:
        return True
    columns, measured = columns_of(several), seconds_of(several)
    by_table, by_formula = chunks_together_s(chunks, columns), prefill.at(columns)
    if not (by_table > 0).all():
        return False
    return soft_loss(np.log(by_table / measured)) <= soft_loss(np.log(by_formula / measured))


def _crowding(prefill: Table, mixed: Table) -> Table:
    """How much dearer a chunk is among decodes than alone, by decodes: medians over the grid, at least 1."""
    tokens, context, _, decodes = mixed.axes
    mesh = np.meshgrid(np.array(tokens), np.array(context), indexing="ij")
    smallest = float(prefill.values.flat[0])
    alone = prefill.at(*prefill.nearest(*mesh)) - smallest
    # Chunks that cost next to nothing alone say nothing about it.
    counted = alone > smallest
    if not counted.any():
        return Table(axes=((decodes[0], decodes[-1]),), seconds=(1.0, 1.0))
    among = (mixed.values - mixed.values[:1, :1])[counted] / alone[counted][:, None, None]
    factors = np.maximum.accumulate(np.maximum(np.median(among, axis=(0, 1)), 1.0))
    return Table(axes=(decodes,), seconds=tuple(factors.round(4).tolist()))


def _chain_s_per_token(mixed: Table) -> float:
    """Seconds a token of one decode beside the smallest chunk, over the longest contexts timed."""
    line = mixed.values[0, 0, :, 0]
    contexts = mixed.axes[2]
    start = int(np.searchsorted(contexts, contexts[-1] / 4))
    return float((line[-1] - line[start]) / (contexts[-1] - contexts[start]))


def _full_rate(table: Table) -> float:
    """Tokens of context a second with many decodes, beside the smallest chunk if there is one."""
    seconds = table.values[0, 0] if table.values.ndim == 4 else table.values
    contexts, decodes = (np.array(axis) for axis in table.axes[-2:])
    rate = contexts[:, None] * decodes[None, :] / seconds
    return float(np.median(rate[contexts >= 256][:, decodes >= decodes[-1] / 2]))
