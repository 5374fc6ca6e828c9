"""CompiledGrid: the chunks of `AttentionGrid`, and its mixed steps, one at a time and with the same bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from cbsim.cost.base import StepShape
from cbsim.cost.compiled_decodes import CompiledAxis, CompiledDecodes, folded
from cbsim.cost.grid import ChunkTable, MixedTable

Chunks = tuple[tuple[int, int], ...]


class Among(NamedTuple):
    """What a mixed step's number of decodes decides."""

    heights: list[float]
    """Chunk, its context and the decodes' mean context, the last axis fastest."""
    near: float
    """The nearest number in the table."""
    skew_s: float
    """For each token that the longest context is beyond the mean."""
    crowding: float


class _Amongs(dict[int, Among]):
    """By number of decodes, made when first asked for; numbers beyond the table share its end."""

    def __init__(self, mixed: MixedTable) -> None:
        super().__init__()
        self._mixed = mixed
        self._heights: dict[float, list[float]] = {}

    def __missing__(self, num_decodes: int) -> Among:
        near, heights = folded(self._mixed.table, num_decodes)
        self[num_decodes] = among = Among(
            self._heights.setdefault(near, heights),
            near,
            float(self._mixed.skew.factor(num_decodes)),
            float(self._mixed.crowding_at(num_decodes)),
        )
        return among


def compiled_chunks(prefill: ChunkTable) -> Callable[[Chunks], float]:
    """Seconds of one layer's attention for chunks alone."""
    chunk_s, smallest_s = _chunk(prefill), prefill.smallest_s

    def chunks_s(chunks: Chunks) -> float:
        together_s = 0.0
        for tokens, before in chunks:
            together_s += chunk_s(tokens, before) - smallest_s
        return smallest_s + together_s

    return chunks_s


def compiled_mixed(
    prefill: ChunkTable, mixed: MixedTable, decodes: CompiledDecodes
) -> Callable[[StepShape], float]:
    """Seconds of one layer's attention for a step with chunks, with decodes or without."""
    amongs = _Amongs(mixed)
    chunk_s, mixed_s, smallest_s = _chunk(prefill), _mixed(mixed), prefill.smallest_s
    attention_s = decodes.attention_s
    chain_end, chain_token_s = int(mixed.chain.axes[0][-1]), mixed.skew.chain_s_per_token
    chain_s: list[float] = mixed.chain_at(np.arange(chain_end + 1)).tolist()

    def crowded_s(shape: StepShape) -> tuple[float, float]:
        """Several chunks: alone, and among decodes if there are any."""
        alone = [chunk_s(tokens, before) - smallest_s for tokens, before in shape.chunks]
        together_s = 0.0
        for own_s in alone:
            together_s += own_s
        among_s = 0.0
        if shape.num_decodes:
            among = amongs[shape.num_decodes]
            for (tokens, before), own_s in zip(shape.chunks, alone, strict=True):
                seconds = mixed_s(among, tokens, before, shape.num_decodes, shape.decode_context)
                among_s = max(among_s, seconds + among.crowding * max(together_s - own_s, 0.0))
        return smallest_s + together_s, among_s

    def step_s(shape: StepShape) -> float:
        chunks, _, num_decodes, context, max_context = shape
        if len(chunks) == 1:
            tokens, before = chunks[0]
            longest_s = smallest_s + (chunk_s(tokens, before) - smallest_s)
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
            among_s += among.skew_s * beyond
        if among_s > longest_s:
            longest_s = among_s
        if max_context <= chain_end:
            seconds = chain_s[max_context]
        else:
            seconds = chain_s[-1] + chain_token_s * (max_context - chain_end)
        if seconds > longest_s:
            longest_s = seconds
        seconds = attention_s(num_decodes, context, max_context)
        return seconds if seconds > longest_s else longest_s

    return step_s


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
