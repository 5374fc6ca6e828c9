"""Attention tables from timings that form a grid: gaps filled, made monotone, needless knots left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cbsim.calibrate.point import Point
from cbsim.cost.base import StepShape
from cbsim.cost.form import DecodeAttention, Floats, FusedAttention, PrefillAttention, StepColumns
from cbsim.cost.grid import AttentionGrid, Skew, Slopes, Table

Sizes = tuple[int, ...]
Formula = Callable[[Sequence[StepShape]], Floats]
"""Seconds of steps by a formula fitted to the same timings: its shape bridges what the grid lacks."""

MIN_FILLED = 0.15
"""Share of all combinations of sizes that must have been timed to speak of a grid."""
MIN_KNOTS = 3
"""Fewest sizes along each axis."""
TOLERANCE = 0.01
"""A knot is left out if a table without it errs by no more than this share,"""
TOLERATED_SHARE = 0.95
"""in so many of the places where it stands."""

SPLIT_UP_TO = 32
"""FlashAttention-2 splits contexts (`num_splits_heuristic`) unless decodes x KV heads fill 0.8 of twice the
GPU's multiprocessors: with 8 KV heads up to 25 decodes on 128 of them, up to 37 on 188."""


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
        filled = float(np.isfinite(self.seconds).mean())
        return filled >= MIN_FILLED and min(self.seconds.shape) >= MIN_KNOTS


def fit_grid(
    points: Sequence[Point],
    decode: DecodeAttention,
    prefill: PrefillAttention,
    fused: FusedAttention | None,
) -> AttentionGrid | None:
    """Tables of attention timings; `None` unless single chunks, decodes and both were timed over grids.

    Points of several chunks or of unequal contexts are left to the formula. `fused` is the formula of mixed
    launches; what lies between timings follows the ratio of timing to formula, linear between its knots.
    """
    chunk_times: dict[Sizes, float] = {}
    decode_times: dict[Sizes, float] = {}
    mixed_times: dict[Sizes, float] = {}
    for point in points:
        sizes = _sizes(point)
        if sizes is None:
            continue
        times = {"decode": decode_times, "prefill": chunk_times, "mixed": mixed_times}[point.op]
        times[sizes] = point.t_median_s
    if fused is None or not (chunk_times and decode_times and mixed_times):
        return None
    lattices = [
        Lattice.of(decode_times, has_decodes=True),
        Lattice.of(chunk_times, has_decodes=False),
        Lattice.of(mixed_times, has_decodes=True),
    ]
    if not all(lattice.is_grid for lattice in lattices):
        return None
    formula = _Formula(decode, prefill, fused)
    filled = [_fill(lattice, formula) for lattice in lattices]
    decode_table = _thinned(_refined(filled[0], formula))
    prefill_table = _thinned(filled[1])
    mixed_table = _thinned(_refined(filled[2], formula))
    chain_s = _chain_s_per_token(mixed_table)
    return AttentionGrid(
        decode=decode_table,
        prefill=prefill_table,
        mixed=mixed_table,
        decode_slopes=Slopes(per_decode_s=decode.per_decode_s, per_context_token_s=decode.per_token_s),
        prefill_slopes=Slopes(
            per_pair_s=prefill.per_pair_s, per_token_s=prefill.per_token_s + prefill.beyond_per_token_s
        ),
        mixed_slopes=Slopes(
            per_pair_s=fused.per_pair_s,
            per_token_s=fused.per_token_s,
            per_decode_s=fused.per_decode_s,
            per_context_token_s=fused.per_context_token_s + fused.beyond_per_context_token_s,
        ),
        decode_skew=Skew(
            chain_s_per_token=chain_s, tokens_per_s=_full_rate(decode_table), split_up_to=SPLIT_UP_TO
        ),
        mixed_skew=Skew(chain_s_per_token=chain_s, tokens_per_s=_full_rate(mixed_table), split_up_to=0),
        crowding=_crowding(prefill_table, mixed_table),
    )


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


class _Formula:
    """The formula of each regime, by sizes as a lattice has them; contexts of decodes are sums."""

    def __init__(self, decode: DecodeAttention, prefill: PrefillAttention, fused: FusedAttention) -> None:
        self._decode, self._prefill, self._fused = decode, prefill, fused

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
            num_tokens=tokens + decodes,
            num_logits=zeros,
            num_chunks=(tokens > 0).astype(np.int64),
            prefill_tokens=tokens,
            longest_prefill=tokens + context,
            num_decodes=decodes,
            decode_context=total.astype(np.int64),
            max_decode_context=np.ceil(total / np.maximum(decodes, 1)).astype(np.int64),
            chunks=tuple(((int(q), int(x)),) if q else () for q, x in zip(tokens, context, strict=True)),
        )
        decode, prefill = self._decode.at(columns), self._prefill.at(columns)
        seconds = np.maximum(decode, prefill)
        if len(axes) == 4:
            seconds = np.maximum(seconds, self._fused.at(columns, self._prefill.tile))
        return seconds.reshape(shape)


def _total_context(axes: Sequence[Floats], has_decodes: bool) -> Floats | None:
    """Over all combinations: decodes times the context of each; `None` for chunks alone."""
    if not has_decodes:
        return None
    mesh = np.meshgrid(*axes, indexing="ij")
    return mesh[-2] * mesh[-1]


def _fill(lattice: Lattice, formula: _Formula) -> Lattice:
    """Every combination, from the timings around it along one axis after the other."""
    seconds = formula.over(lattice.axes, _total_context(lattice.axes, lattice.has_decodes))
    ratio = np.log(lattice.seconds / seconds)
    num_axes = ratio.ndim
    order = (1, 0, *range(num_axes - 1, 1, -1))
    for beyond_ends in (False, True):
        for axis in order:
            ratio = np.apply_along_axis(_bridged, axis, ratio, lattice.axes[axis], beyond_ends)
    return Lattice(lattice.axes, seconds * np.exp(ratio), lattice.has_decodes)


def _bridged(ratio: Floats, knots: Floats, beyond_ends: bool) -> Floats:
    known = np.isfinite(ratio)
    if known.all() or not known.any():
        return ratio
    bridged = np.interp(knots, knots[known], ratio[known])
    if not beyond_ends:
        bridged[(knots < knots[known][0]) | (knots > knots[known][-1])] = np.nan
    return bridged


def _refined(lattice: Lattice, formula: _Formula) -> Lattice:
    """More knots along the number of decodes, halfway between two: the formula bends there, a line can't."""
    decodes = lattice.axes[-1]
    middle = 0.5 * (decodes[1:] + decodes[:-1])
    finer = np.sort(np.concatenate([decodes, middle[middle % 1 == 0]]))
    axes = (*lattice.axes[:-1], finer)
    ratio = lattice.seconds / formula.over(lattice.axes, _total_context(lattice.axes, True))
    turned = np.apply_along_axis(lambda values: np.interp(finer, decodes, values), -1, ratio)
    return Lattice(axes, formula.over(axes, _total_context(axes, True)) * turned, has_decodes=True)


def _monotone(seconds: Floats) -> Floats:
    """The middle between the lowest monotone table above and the highest one below."""
    for axis in range(seconds.ndim):
        above = np.maximum.accumulate(seconds, axis=axis)
        below = np.flip(np.minimum.accumulate(np.flip(seconds, axis), axis=axis), axis)
        seconds = 0.5 * (above + below)
    return seconds


def _thinned(lattice: Lattice) -> Table:
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
