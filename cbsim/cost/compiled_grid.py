"""CompiledGrid: `AttentionGrid` for one step at a time, with the same bits."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

from cbsim.cost.base import StepShape
from cbsim.cost.grid import AttentionGrid, Floats, Slopes, Table

MAX_REMEMBERED = 512
"""Numbers of decodes whose share of the tables is kept."""

Line = Callable[[float], float]
Plane = Callable[[float, float], float]
Space = Callable[[float, float, float], float]


class Among(NamedTuple):
    """What a step's number of decodes decides."""

    decode: Line
    """Of their mean context: a launch of them alone."""
    mixed: Space
    """Of a chunk, its context and their mean context."""
    num_decodes: tuple[float, float]
    """The nearest number in each of these tables."""
    decode_skew: float
    mixed_skew: float
    crowding: float


class CompiledGrid:
    """The same lookups and the same sums in the same order, on plain lists."""

    def __init__(self, grid: AttentionGrid) -> None:
        self._grid = grid
        self._among = lru_cache(maxsize=MAX_REMEMBERED)(self._make_among)
        self._prefill_table = _plane(grid.prefill.axes, grid.prefill.values)
        self._chain = _line(grid.chain.axes[0], grid.chain.values)
        self._chain_s = grid.mixed_skew.chain_s_per_token
        self._smallest = float(grid.prefill.values.flat[0])
        self._chain_ends = _ends(grid.chain)[0]
        self._decode_ends = _ends(grid.decode)[0]
        self._prefill_ends = _ends(grid.prefill)
        self._mixed_ends = _ends(grid.mixed)[:3]

    def decode_s(self, num_decodes: int, context: int, max_context: int) -> float:
        """Seconds of one layer's attention for decodes alone, at least one."""
        among = self._among(num_decodes)
        mean = context / num_decodes
        low, high = self._decode_ends
        near = low if mean < low else high if mean > high else mean
        near_decodes = among.num_decodes[0]
        seconds = among.decode(near)
        if near != mean or near_decodes != num_decodes:
            slopes = self._grid.decode_slopes
            seconds += slopes.decodes_s(num_decodes, mean) - slopes.decodes_s(near_decodes, near)
        beyond = max_context - mean
        return seconds + among.decode_skew * (beyond if beyond > 0.0 else 0.0)

    def step_s(self, shape: StepShape) -> float:
        """Seconds of one layer's attention for a step with chunks."""
        chunks, _, num_decodes, context, max_context = shape
        smallest = self._smallest
        together = 0.0
        alone = []
        for tokens, before in chunks:
            seconds = self._prefill_at(tokens, before) - smallest
            alone.append(seconds)
            together += seconds
        prefill = smallest + together
        if not num_decodes:
            return prefill
        mean = context / num_decodes
        among = self._among(num_decodes)
        mixed = 0.0
        for (tokens, before), own in zip(chunks, alone, strict=True):
            seconds = self._mixed_at(among, tokens, before, num_decodes, mean)
            seconds = seconds + among.crowding * (together - own)
            if seconds > mixed:
                mixed = seconds
        beyond = max_context - mean
        mixed = mixed + among.mixed_skew * (beyond if beyond > 0.0 else 0.0)
        low, high = self._chain_ends
        near = low if max_context < low else high if max_context > high else max_context
        chain = self._chain(near) + self._chain_s * (max_context - near)
        return max(mixed, chain, self.decode_s(num_decodes, context, max_context), prefill)

    def _prefill_at(self, tokens: int, context: int) -> float:
        (low, high), (shortest, longest) = self._prefill_ends
        near = low if tokens < low else high if tokens > high else tokens
        near_context = shortest if context < shortest else longest if context > longest else context
        seconds = self._prefill_table(near, near_context)
        if near == tokens and near_context == context:
            return seconds
        return seconds + _more_chunk(self._grid.prefill_slopes, tokens, context, near, near_context)

    def _mixed_at(self, among: Among, tokens: int, context: int, num_decodes: int, mean: float) -> float:
        (low, high), (shortest, longest), (least, most) = self._mixed_ends
        near = low if tokens < low else high if tokens > high else tokens
        near_context = shortest if context < shortest else longest if context > longest else context
        near_mean = least if mean < least else most if mean > most else mean
        near_decodes = among.num_decodes[1]
        seconds = among.mixed(near, near_context, near_mean)
        if near != tokens or near_context != context:
            seconds += _more_chunk(self._grid.mixed_slopes, tokens, context, near, near_context)
        if near_decodes != num_decodes or near_mean != mean:
            slopes = self._grid.mixed_slopes
            seconds += slopes.decodes_s(num_decodes, mean) - slopes.decodes_s(near_decodes, near_mean)
        return seconds

    def _make_among(self, num_decodes: int) -> Among:
        grid = self._grid
        decode, mixed = (
            min(max(float(num_decodes), axis[0]), axis[-1])
            for axis in (grid.decode.axes[-1], grid.mixed.axes[-1])
        )
        return Among(
            decode=_line(grid.decode.axes[0], _folded(grid.decode, decode)),
            mixed=_space(grid.mixed.axes[:3], _folded(grid.mixed, mixed)),
            num_decodes=(decode, mixed),
            decode_skew=float(grid.decode_skew.factor(num_decodes)),
            mixed_skew=float(grid.mixed_skew.factor(num_decodes)),
            crowding=float(grid.crowding.at(*grid.crowding.nearest(num_decodes))),
        )


def _ends(table: Table) -> list[tuple[float, float]]:
    return [(axis[0], axis[-1]) for axis in table.axes]


def _more_chunk(slopes: Slopes, tokens: int, context: int, near: float, near_context: float) -> float:
    more: float = slopes.chunk_s(tokens, context) - slopes.chunk_s(near, near_context)
    return more


def _folded(table: Table, num_decodes: float) -> Floats:
    """The table for so many decodes: its last axis, which `Table.at` folds first, folded."""
    decodes, values = table.axes[-1], table.values
    place = min(bisect_right(decodes, num_decodes) - 1, len(decodes) - 2)
    weight = (num_decodes - decodes[place]) / (decodes[place + 1] - decodes[place])
    low: Floats = values[..., place]
    folded: Floats = low + weight * (values[..., place + 1] - low)
    return folded


def _line(axis: Sequence[float], values: Floats) -> Line:
    knots, heights = list(axis), values.tolist()
    last = len(knots) - 2

    def seconds(size: float) -> float:
        place = bisect_right(knots, size) - 1
        place = place if place < last else last
        weight = (size - knots[place]) / (knots[place + 1] - knots[place])
        low: float = heights[place]
        high: float = heights[place + 1]
        return low + weight * (high - low)

    return seconds


def _plane(axes: Sequence[Sequence[float]], values: Floats) -> Plane:
    rows, columns = (list(axis) for axis in axes)
    heights = values.tolist()
    last_row, last_column = len(rows) - 2, len(columns) - 2

    def seconds(row: float, column: float) -> float:
        i, j = bisect_right(rows, row) - 1, bisect_right(columns, column) - 1
        i, j = (i if i < last_row else last_row), (j if j < last_column else last_column)
        row_weight = (row - rows[i]) / (rows[i + 1] - rows[i])
        weight = (column - columns[j]) / (columns[j + 1] - columns[j])
        above, below = heights[i], heights[i + 1]
        low: float = above[j] + weight * (above[j + 1] - above[j])
        high: float = below[j] + weight * (below[j + 1] - below[j])
        return low + row_weight * (high - low)

    return seconds


def _space(axes: Sequence[Sequence[float]], values: Floats) -> Space:
    first = list(axes[0])
    planes = [_plane(axes[1:], layer) for layer in values]
    last = len(first) - 2

    def seconds(one: float, two: float, three: float) -> float:
        i = bisect_right(first, one) - 1
        i = i if i < last else last
        weight = (one - first[i]) / (first[i + 1] - first[i])
        low = planes[i](two, three)
        return low + weight * (planes[i + 1](two, three) - low)

    return seconds
