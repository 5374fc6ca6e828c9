"""CompiledGrid: `AttentionGrid` for one step at a time, with the same bits."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from itertools import count
from typing import NamedTuple

import numpy as np

from cbsim.cost.base import StepShape
from cbsim.cost.grid import AttentionGrid, Floats, Table

DecodeSeconds = Callable[[int, int, int], float]
"""Of decodes, their context in all and the longest of them."""
DecodesSeconds = Callable[[int, int, int, int], list[float]]
"""Of the same and a number of steps in a row."""


class Among(NamedTuple):
    """What a step's number of decodes decides."""

    decode: list[float]
    """A launch of them alone, by the knots of their mean context."""
    mixed: list[float]
    """Chunk, its context and their mean context, the last axis fastest."""
    decode_near: float
    """The nearest number in each of these tables."""
    mixed_near: float
    decode_skew_s: float
    """For each token that the longest context is beyond the mean."""
    mixed_skew_s: float
    crowding: float


class CompiledGrid:
    """The same lookups and the same sums in the same order, on plain lists."""

    decode_s: DecodeSeconds
    """Seconds of one layer's attention for decodes alone, at least one."""
    decodes_s: DecodesSeconds
    """The same for so many steps in a row, each with one token more of context for every decode."""
    step_s: Callable[[StepShape], float]
    """Seconds of one layer's attention for a step with chunks."""

    def __init__(self, grid: AttentionGrid) -> None:
        amongs = _Amongs(grid)
        self.decode_s = _decode(grid, amongs)
        self.decodes_s = _decodes(grid, amongs, self.decode_s)
        self.step_s = _step(grid, amongs, self.decode_s)


class _Amongs(dict[int, Among]):
    """By number of decodes, made when first asked for; numbers beyond the tables share their last."""

    def __init__(self, grid: AttentionGrid) -> None:
        super().__init__()
        self._grid = grid
        self._folded: dict[tuple[int, float], list[float]] = {}

    def __missing__(self, num_decodes: int) -> Among:
        grid = self._grid
        near = [
            min(max(float(num_decodes), table.axes[-1][0]), table.axes[-1][-1])
            for table in (grid.decode, grid.mixed)
        ]
        self[num_decodes] = among = Among(
            self._fold(grid.decode, near[0]),
            self._fold(grid.mixed, near[1]),
            near[0],
            near[1],
            float(grid.decode_skew.factor(num_decodes)),
            float(grid.mixed_skew.factor(num_decodes)),
            float(grid.crowding.at(*grid.crowding.nearest(num_decodes))),
        )
        return among

    def _fold(self, table: Table, num_decodes: float) -> list[float]:
        """The table for so many decodes: its last axis, which `Table.at` folds first, folded."""
        key = (table.values.ndim, num_decodes)
        if key not in self._folded:
            knots = table.axes[-1]
            place = min(bisect_right(knots, num_decodes), len(knots) - 1) - 1
            weight = (num_decodes - knots[place]) / (knots[place + 1] - knots[place])
            low: Floats = table.values[..., place]
            folded: Floats = low + weight * (table.values[..., place + 1] - low)
            self._folded[key] = folded.ravel().tolist()
        return self._folded[key]


def _decode(grid: AttentionGrid, amongs: _Amongs) -> DecodeSeconds:
    means = _Axis(grid.decode, 0)
    knots, widths, places, low, high = means.knots, means.widths, means.places, means.low, means.high
    more_s = grid.decode_slopes.decodes_s

    def decode_s(num_decodes: int, context: int, max_context: int) -> float:
        heights, _, near_decodes, _, skew_s, _, _ = amongs[num_decodes]
        mean = context / num_decodes
        if low <= mean <= high:
            place = places[context // num_decodes]
            base_s = heights[place]
            seconds = base_s + (mean - knots[place]) / widths[place] * (heights[place + 1] - base_s)
            if near_decodes != num_decodes:
                seconds += more_s(num_decodes, mean) - more_s(near_decodes, mean)
        else:
            near, seconds = (low, heights[0]) if mean < low else (high, heights[-1])
            seconds += more_s(num_decodes, mean) - more_s(near_decodes, near)
        if max_context > mean:
            return seconds + skew_s * (max_context - mean)
        return seconds

    return decode_s


def _decodes(grid: AttentionGrid, amongs: _Amongs, decode_s: DecodeSeconds) -> DecodesSeconds:
    means = _Axis(grid.decode, 0)
    knots, widths, places, low, high = means.knots, means.widths, means.places, means.low, means.high

    def decodes_s(num_decodes: int, context: int, max_context: int, num_steps: int) -> list[float]:
        heights, _, near_decodes, _, skew_s, _, _ = amongs[num_decodes]
        last = context + num_decodes * (num_steps - 1)
        if near_decodes != num_decodes or context < low * num_decodes or last > high * num_decodes:
            contexts = range(context, last + 1, num_decodes)
            return [decode_s(num_decodes, *sizes) for sizes in zip(contexts, count(max_context))]
        # Quotients of floats are quicker than those of integers, and the same.
        tokens, more, floor = float(context), float(num_decodes), context // num_decodes
        series: list[float] = []
        for longest in range(max_context, max_context + num_steps):
            mean = tokens / more
            tokens += more
            place = places[floor]
            floor += 1
            base_s = heights[place]
            seconds = base_s + (mean - knots[place]) / widths[place] * (heights[place + 1] - base_s)
            if longest > mean:
                seconds += skew_s * (longest - mean)
            series.append(seconds)
        return series

    return decodes_s


def _step(grid: AttentionGrid, amongs: _Amongs, decode_s: DecodeSeconds) -> Callable[[StepShape], float]:
    prefill_s, mixed_s = _prefill(grid), _mixed(grid)
    smallest_s = float(grid.prefill.values.flat[0])
    chains = _Axis(grid.chain, 0)
    chain_s = grid.chain_at(np.arange(chains.high + 1)).tolist()
    chain_end_s, chain_end, chain_token_s = chain_s[-1], chains.high, grid.mixed_skew.chain_s_per_token

    def crowded_s(shape: StepShape) -> tuple[float, float]:
        """Several chunks: alone, and among decodes if there are any."""
        alone = [prefill_s(tokens, before) - smallest_s for tokens, before in shape.chunks]
        together_s = 0.0
        for own_s in alone:
            together_s += own_s
        among_s = 0.0
        if shape.num_decodes:
            among = amongs[shape.num_decodes]
            for (tokens, before), own_s in zip(shape.chunks, alone, strict=True):
                seconds = mixed_s(among, tokens, before, shape.num_decodes, shape.decode_context)
                among_s = max(among_s, seconds + among.crowding * (together_s - own_s))
        return smallest_s + together_s, among_s

    def step_s(shape: StepShape) -> float:
        chunks, _, num_decodes, context, max_context = shape
        if len(chunks) == 1:
            tokens, before = chunks[0]
            longest_s = smallest_s + (prefill_s(tokens, before) - smallest_s)
            if not num_decodes:
                return longest_s
            among = amongs[num_decodes]
            among_s = mixed_s(among, tokens, before, num_decodes, context)
        else:
            longest_s, among_s = crowded_s(shape)
            if not num_decodes:
                return longest_s
            among = amongs[num_decodes]
        beyond = max_context - context / num_decodes
        if beyond > 0.0:
            among_s += among.mixed_skew_s * beyond
        if among_s > longest_s:
            longest_s = among_s
        if max_context <= chain_end:
            seconds = chain_s[max_context]
        else:
            seconds = chain_end_s + chain_token_s * (max_context - chain_end)
        if seconds > longest_s:
            longest_s = seconds
        seconds = decode_s(num_decodes, context, max_context)
        return seconds if seconds > longest_s else longest_s

    return step_s


def _prefill(grid: AttentionGrid) -> Callable[[int, int], float]:
    rows, columns = _Axis(grid.prefill, 0), _Axis(grid.prefill, 1)
    low, high, shortest, longest = rows.low, rows.high, columns.low, columns.high
    row_places, row_weights, places, weights = rows.places, rows.weights, columns.places, columns.weights
    heights: list[list[float]] = grid.prefill.values.tolist()
    more_s = grid.prefill_slopes.chunk_s

    def seconds(tokens: int, context: int) -> float:
        near = low if tokens < low else high if tokens > high else tokens
        near_context = shortest if context < shortest else longest if context > longest else context
        i, j, weight = row_places[near], places[near_context], weights[near_context]
        row = heights[i]
        base_s = row[j]
        lower_s = base_s + weight * (row[j + 1] - base_s)
        row = heights[i + 1]
        base_s = row[j]
        upper_s = base_s + weight * (row[j + 1] - base_s)
        found_s = lower_s + row_weights[near] * (upper_s - lower_s)
        if near != tokens or near_context != context:
            found_s += more_s(tokens, context) - more_s(near, near_context)
        return found_s

    return seconds


def _mixed(grid: AttentionGrid) -> Callable[[Among, int, int, int, int], float]:
    rows, columns, means = (_Axis(grid.mixed, number) for number in range(3))
    low, high, shortest, longest = rows.low, rows.high, columns.low, columns.high
    least, most, last_place = means.low, means.high, len(means.widths) - 1
    knots, widths, mean_places = means.knots, means.widths, means.places
    per_column = len(knots)
    per_row = per_column * len(columns.knots)
    row_starts = [place * per_row for place in rows.places]
    column_starts = [place * per_column for place in columns.places]
    row_weights, column_weights = rows.weights, columns.weights
    more_chunk_s, more_decodes_s = grid.mixed_slopes.chunk_s, grid.mixed_slopes.decodes_s

    def seconds(among: Among, tokens: int, before: int, num_decodes: int, context: int) -> float:
        heights = among.mixed
        near = low if tokens < low else high if tokens > high else tokens
        near_before = shortest if before < shortest else longest if before > longest else before
        mean = near_mean = context / num_decodes
        if least <= mean <= most:
            place = mean_places[context // num_decodes]
        else:
            near_mean, place = (least, 0) if mean < least else (most, last_place)
        weight = (near_mean - knots[place]) / widths[place]
        at = row_starts[near] + column_starts[near_before] + place
        above = at + per_row
        base_s = heights[at]
        lower_s = base_s + weight * (heights[at + 1] - base_s)
        base_s = heights[above]
        upper_s = base_s + weight * (heights[above + 1] - base_s)
        column_weight = column_weights[near_before]
        if column_weight:
            at += per_column
            above += per_column
            base_s = heights[at]
            lower_s += column_weight * (base_s + weight * (heights[at + 1] - base_s) - lower_s)
            base_s = heights[above]
            upper_s += column_weight * (base_s + weight * (heights[above + 1] - base_s) - upper_s)
        found_s = lower_s + row_weights[near] * (upper_s - lower_s)
        if near != tokens or near_before != before:
            found_s += more_chunk_s(tokens, before) - more_chunk_s(near, near_before)
        near_decodes = among.mixed_near
        if near_decodes != num_decodes or near_mean != mean:
            found_s += more_decodes_s(num_decodes, mean) - more_decodes_s(near_decodes, near_mean)
        return found_s

    return seconds


class _Axis:
    """Where sizes lie among the knots of an axis, by whole size from 0 to the last knot."""

    def __init__(self, table: Table, number: int) -> None:
        knots = np.array(table.axes[number])
        sizes = np.arange(int(knots[-1]) + 1)
        places = np.clip(np.searchsorted(knots, sizes, side="right") - 1, 0, len(knots) - 2)
        widths = np.diff(knots)
        self.low, self.high = int(knots[0]), int(knots[-1])
        self.knots: list[float] = knots.tolist()
        self.widths: list[float] = widths.tolist()
        self.places: list[int] = places.tolist()
        self.weights: list[float] = ((sizes - knots[places]) / widths[places]).tolist()
