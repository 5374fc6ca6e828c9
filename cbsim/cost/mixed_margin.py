"""Where a launch of a chunk and decodes surely outlasts either alone, cell by cell of its table.

Between knots all three tables are multilinear; beyond their ends those of the parts are convex along each
axis. So on a grid with the knots of both, the difference of the mixed table and a part's is least at a
corner: what holds at the corners of a cell holds throughout.
"""

from __future__ import annotations

import numpy as np

from cbsim.cost.attention_grid import ChunkTable, DecodeTable, Floats, MixedTable

ROUNDING = 1e-9
"""Share of a time that rounding stays far below."""


def mixed_margins(prefill: ChunkTable, mixed: MixedTable, decode: DecodeTable) -> Floats:
    """Seconds by which a mixed launch outlasts its decodes, equal contexts taken, anywhere in a cell.

    In the shape of the mixed table, a cell at its lower corner. Minus infinity where the decodes may last
    longer, or the chunk may, and where no cell begins.
    """
    margins = np.full(mixed.table.shape, -np.inf)
    beyond_chunk = _beyond_chunk(prefill, mixed)
    beyond_decodes = _beyond_decodes(decode, mixed)
    cells = tuple(slice(size) for size in beyond_chunk.shape)
    margins[cells] = np.where(np.minimum(beyond_chunk, beyond_decodes) > 0.0, beyond_decodes, -np.inf)
    return margins


def _beyond_chunk(prefill: ChunkTable, mixed: MixedTable) -> Floats:
    """By how much more time than the chunk alone, least over each cell."""
    values, axes = mixed.table.values, mixed.table.axes
    tokens, context = (_merged(axes[number], prefill.table.axes[number]) for number in range(2))
    alone = prefill.at(tokens[:, None], context)
    together = _refined(_refined(values[:, :, :-1, :-1], axes[0], tokens, 0), axes[1], context, 1)
    beyond = together * (1.0 - ROUNDING) - alone[:, :, None, None]
    return _least(_least(beyond, axes[0], tokens, 0), axes[1], context, 1)


def _beyond_decodes(decode: DecodeTable, mixed: MixedTable) -> Floats:
    """By how much more time than the decodes alone, least over each cell."""
    values, axes = mixed.table.values, mixed.table.axes[2:]
    mean, count = (_merged(axes[number], decode.table.axes[number]) for number in range(2))
    alone = decode.at(count, count * mean[:, None], mean[:, None])
    together = _refined(_refined(values[:-1, :-1], axes[0], mean, 2), axes[1], count, 3)
    beyond = together * (1.0 - ROUNDING) - alone
    return _least(_least(beyond, axes[0], mean, 2), axes[1], count, 3)


def _merged(knots: tuple[float, ...], others: tuple[float, ...]) -> Floats:
    """Knots, and others between them."""
    return np.union1d(knots, np.clip(others, knots[0], knots[-1]))


def _refined(values: Floats, knots: tuple[float, ...], finer: Floats, axis: int) -> Floats:
    """Values at more knots along an axis, linear between."""
    place = np.clip(np.searchsorted(knots, finer, side="right") - 1, 0, len(knots) - 2)
    weight = (finer - np.take(knots, place)) / np.diff(knots)[place]
    low, high = values.take(place, axis), values.take(place + 1, axis)
    refined: Floats = low + weight.reshape(-1, *[1] * (values.ndim - 1 - axis)) * (high - low)
    return refined


def _least(values: Floats, knots: tuple[float, ...], finer: Floats, axis: int) -> Floats:
    """The least value from each knot to the next, both included."""
    starts = np.searchsorted(finer, knots)
    within: Floats = np.minimum.reduceat(values, starts[:-1], axis)
    return np.minimum(within, values.take(starts[1:], axis))
