"""CompiledGrid: the chunks of `AttentionGrid`, and its mixed steps, one at a time and with the same bits."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from cbsim.cost.attention_grid import ChunkTable, MixedTable
from cbsim.cost.compiled_decodes import CompiledAxis, CompiledDecodes, folded
from cbsim.cost.cost_model import StepShape
from cbsim.cost.mixed_margin import mixed_margins

Chunks = tuple[tuple[int, int], ...]
AttentionSeconds = Callable[[StepShape], float]


class Among(NamedTuple):
    """What a mixed step's number of decodes decides."""

    heights: list[float]
    """Chunk, its context and the decodes' mean context, the last axis fastest."""
    margins_s: list[float]
    """Of `mixed_margins`, by cell of the same."""
    skew_s: float
    """For each token that the longest context is beyond the mean."""
    more_skew_s: float
    """By how much more that is for decodes alone."""
    near: float
    """The nearest number in the table."""
    crowding: float


class _Amongs(dict[int, Among]):
    """By number of decodes, made when first asked for; numbers beyond the table share its end."""

    def __init__(self, prefill: ChunkTable, mixed: MixedTable, decodes: CompiledDecodes) -> None:
        super().__init__()
        self._mixed, self._decodes = mixed, decodes
        self._heights: dict[float, list[float]] = {}
        margins = np.moveaxis(mixed_margins(prefill, mixed, decodes.decode), -1, 0)
        self._margins: list[list[float]] = margins.reshape(len(margins), -1).tolist()

    def __missing__(self, num_decodes: int) -> Among:
        near, heights = folded(self._mixed.table, num_decodes)
        skew_s = float(self._mixed.skew.factor(num_decodes))
        self[num_decodes] = among = Among(
            self._heights.setdefault(near, heights),
            self._margins[self._cell(num_decodes)],
            skew_s,
            self._decodes[num_decodes].skew_s - skew_s,
            near,
            float(self._mixed.crowding_at(num_decodes)),
        )
        return among

    def _cell(self, num_decodes: int) -> int:
        """From which knot on; the last one, from where there is no cell, for numbers beyond the table."""
        knots = self._mixed.table.axes[-1]
        if not knots[0] <= num_decodes <= knots[-1]:
            return -1
        return min(bisect_right(knots, num_decodes), len(knots) - 1) - 1


def compiled_chunks(prefill: ChunkTable) -> Callable[[Chunks], float]:
    """Seconds of one layer's attention for chunks alone."""
    chunk_s, smallest_s = _chunk(prefill), prefill.smallest_s

    def chunks_s(chunks: Chunks) -> float:
        together_s = 0.0
        for tokens, before in chunks:
            together_s += chunk_s(tokens, before) - smallest_s
        return smallest_s + together_s

    return chunks_s


def compiled_mixed(prefill: ChunkTable, mixed: MixedTable, decodes: CompiledDecodes) -> AttentionSeconds:
    """Seconds of one layer's attention for a step with chunks, with decodes or without."""
    amongs = _Amongs(prefill, mixed, decodes)
    chain_end = int(mixed.chain.axes[0][-1])
    chain_s: list[float] = mixed.chain_at(np.arange(chain_end + 1)).tolist()
    otherwise_s = _largest(prefill, mixed, decodes, amongs, chain_s)
    chunks_s = compiled_chunks(prefill)
    rows, columns, means = (CompiledAxis(mixed.table, number) for number in range(3))
    per_column = len(means.knots)
    per_row = per_column * len(columns.knots)
    row_starts, column_starts = rows.starts(per_row), columns.starts(per_column)
    row_weights, column_weights, mean_cells = rows.weights, columns.weights, means.cells()

    def attention_s(shape: StepShape) -> float:
        chunks, _, num_decodes, context, max_context = shape
        if not num_decodes:
            return chunks_s(chunks)
        if len(chunks) != 1:
            return otherwise_s(shape)
        # By far the most of a run's mixed steps, most of which the table for them decides alone: as `_mixed`
        # has it within its ends, spelt out for speed.
        ((tokens, before),) = chunks
        heights, margins_s, skew_s, more_skew_s, _, _ = amongs[num_decodes]
        mean = context / num_decodes
        beyond = max_context - mean
        try:
            place, knot, width = mean_cells[context // num_decodes]
            at = row_starts[tokens] + column_starts[before] + place
            decides = more_skew_s * beyond <= margins_s[at]
            least_s = chain_s[max_context]
        except IndexError:  # Sizes beyond the table.
            return otherwise_s(shape)
        if not decides:
            return otherwise_s(shape)
        weight = (mean - knot) / width
        above = at + per_row
        base_s = heights[at]
        lower_s = base_s + weight * (heights[at + 1] - base_s)
        base_s = heights[above]
        upper_s = base_s + weight * (heights[above + 1] - base_s)
        column_weight = column_weights[before]
        if column_weight:
            at += per_column
            above += per_column
            base_s = heights[at]
            lower_s += column_weight * (base_s + weight * (heights[at + 1] - base_s) - lower_s)
            base_s = heights[above]
            upper_s += column_weight * (base_s + weight * (heights[above + 1] - base_s) - upper_s)
        seconds = lower_s + row_weights[tokens] * (upper_s - lower_s)
        if beyond > 0.0:
            seconds += skew_s * beyond
        return seconds if seconds > least_s else least_s

    return attention_s


def _largest(
    prefill: ChunkTable, mixed: MixedTable, decodes: CompiledDecodes, amongs: _Amongs, chain_s: list[float]
) -> AttentionSeconds:
    """Any step of chunks and decodes: the largest of all that its time can't be less than."""
    chunk_s, mixed_s, smallest_s = _chunk(prefill), _mixed(mixed), prefill.smallest_s
    attention_s, chain_end, chain_token_s = (
        decodes.attention_s,
        len(chain_s) - 1,
        mixed.skew.chain_s_per_token,
    )

    def largest_s(shape: StepShape) -> float:
        chunks, _, num_decodes, context, max_context = shape
        alone = [chunk_s(tokens, before) - smallest_s for tokens, before in chunks]
        together_s = 0.0
        for own_s in alone:
            together_s += own_s
        among = amongs[num_decodes]
        among_s = 0.0
        for (tokens, before), own_s in zip(chunks, alone, strict=True):
            seconds = mixed_s(among, tokens, before, num_decodes, context)
            if together_s > own_s:
                seconds += among.crowding * (together_s - own_s)
            if seconds > among_s:
                among_s = seconds
        among_s += among.skew_s * max(max_context - context / num_decodes, 0.0)
        if max_context <= chain_end:
            least_s = chain_s[max_context]
        else:
            least_s = chain_s[-1] + chain_token_s * (max_context - chain_end)
        alone_s = attention_s(num_decodes, context, max_context)
        return max(among_s, least_s, smallest_s + together_s, alone_s)

    return largest_s


def _chunk(prefill: ChunkTable) -> Callable[[int, int], float]:
    rows, columns = CompiledAxis(prefill.table, 0), CompiledAxis(prefill.table, 1)
    low, high, shortest, longest = rows.low, rows.high, columns.low, columns.high
    row_places, row_weights, places, weights = rows.places, rows.weights, columns.places, columns.weights
    heights: list[list[float]] = prefill.table.values.tolist()
    more_s = prefill.slopes.chunk_s

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


def _mixed(mixed: MixedTable) -> Callable[[Among, int, int, int, int], float]:
    rows, columns, means = (CompiledAxis(mixed.table, number) for number in range(3))
    low, high, shortest, longest = rows.low, rows.high, columns.low, columns.high
    least, most, last_place = means.low, means.high, len(means.widths) - 1
    knots, widths, mean_places = means.knots, means.widths, means.places
    per_column = len(knots)
    per_row = per_column * len(columns.knots)
    row_starts = [place * per_row for place in rows.places]
    column_starts = [place * per_column for place in columns.places]
    row_weights, column_weights = rows.weights, columns.weights
    more_chunk_s, more_decodes_s = mixed.slopes.chunk_s, mixed.slopes.decodes_s

    def seconds(among: Among, tokens: int, before: int, num_decodes: int, context: int) -> float:
        heights = among.heights
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
        near_decodes = among.near
        if near_decodes != num_decodes or near_mean != mean:
            found_s += more_decodes_s(num_decodes, mean) - more_decodes_s(near_decodes, near_mean)
        return found_s

    return seconds
