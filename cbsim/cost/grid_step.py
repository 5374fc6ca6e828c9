"""Attention of one layer by tables, for one step: those of `attention_grid.py`, over records."""

from __future__ import annotations

from typing import Any

from cbsim.cost.attention_grid import chunk_growth_s, decodes_growth_s, skew_factor_s
from cbsim.cost.elementwise import cell_of, larger
from cbsim.cost.interpolation import at_line, at_plane, at_space, nearest, on_line, share_of
from cbsim.cost.step_columns import context_read


def decodes_height_s(grid: Any, num_decodes: Any, place: Any) -> Any:
    """Seconds of a `DecodeTable` for a number of decodes at the knot `place` of their mean context."""
    axis = grid.axes[1]
    near = nearest(axis, num_decodes)
    cell = cell_of(axis, near)
    return on_line(grid.values, place * len(axis.knots) + cell, 1, share_of(axis, cell, near))


def decodes_by_grid_s(cost: Any, shape: Any) -> Any:
    """Seconds for the decodes of a step alone, at least one."""
    grid, lines, num_decodes = cost.decode_grid, cost.decode_lines, shape.num_decodes
    means, decodes = grid.axes
    longest = shape.max_decode_context
    mean = near_mean = context_read(shape) / num_decodes
    attended = shape.decode_context / num_decodes
    if mean < means.low:
        near_mean = means.low
    elif mean > means.high:
        near_mean = means.high
    place = cell_of(means, near_mean)
    at = num_decodes * len(means.knots) + place
    if at + 1 < len(lines):
        low_s, high_s = lines[at], lines[at + 1]
    else:
        low_s = decodes_height_s(grid, num_decodes, place)
        high_s = decodes_height_s(grid, num_decodes, place + 1)
    seconds = low_s + share_of(means, place, near_mean) * (high_s - low_s)
    if near_mean != mean or num_decodes < decodes.low or num_decodes > decodes.high:
        seconds += beyond_decodes_s(grid.slopes, means, decodes, num_decodes, mean)
    if longest > attended:
        # A captured launch splits contexts as that of the padded batch does.
        launched = cost.padded[num_decodes] if num_decodes < len(cost.padded) else num_decodes
        lost = lost_s_per_token(cost, cost.decode_skew, cost.decode_unequal, 0, num_decodes, launched)
        seconds += lost * (longest - attended)
    return seconds


def lost_s_per_token(
    cost: Any, skew: Any, timed: Any, num_tokens: Any, num_decodes: Any, num_launched: Any
) -> Any:
    """Seconds that unequal contexts lose, for each token of the longest beyond the mean, beside `num_tokens`
    of chunks: by the table `timed` of a `Skew`, for as many decodes as are launched, else by theory.
    """
    if skew.is_timed:
        tokens, decodes = timed.axes
        return at_plane(timed.values, timed.axes, nearest(tokens, num_tokens), nearest(decodes, num_launched))
    if skew.tail_s_per_token > 0.0:
        return skew_factor_s(skew, harmonic_number(cost.harmonic, num_decodes), num_decodes)
    return 0.0


def beyond_decodes_s(slopes: Any, means: Any, decodes: Any, num_decodes: Any, mean: Any) -> Any:
    """Seconds by which decodes beyond the ends of a table's axes take longer than at its ends."""
    near_s = decodes_growth_s(slopes, nearest(decodes, num_decodes), nearest(means, mean))
    return decodes_growth_s(slopes, num_decodes, mean) - near_s


def harmonic_number(harmonic: Any, number: Any) -> Any:
    """Of `harmonic_numbers`, however large the number."""
    last = len(harmonic) - 1
    if number <= last:
        return harmonic[number]
    total = harmonic[last]
    for count in range(last + 1, number + 1):
        total += 1.0 / count
    return total


def chunk_by_grid_s(grid: Any, num_tokens: Any, before: Any) -> Any:
    """Seconds for one chunk alone of `num_tokens` over a context of `before`."""
    near, near_before = nearest(grid.axes[0], num_tokens), nearest(grid.axes[1], before)
    seconds = at_plane(grid.values, grid.axes, near, near_before)
    if near != num_tokens or near_before != before:
        growth_s = chunk_growth_s(grid.slopes, num_tokens, before)
        seconds += growth_s - chunk_growth_s(grid.slopes, near, near_before)
    return seconds


def beyond_launch_s(grid: Any, chunks: Any, num_chunks: Any) -> Any:
    """The sum over chunks of what each costs alone beyond the smallest chunk, seconds."""
    together_s = 0.0
    for place in range(num_chunks):
        chunk = chunks[place]
        alone_s = chunk_by_grid_s(grid, chunk.num_tokens, chunk.num_computed_tokens)
        together_s += alone_s - grid.values[0]
    return together_s


def mixed_by_grid_s(cost: Any, shape: Any, chunks: Any, together_s: Any) -> Any:
    """Seconds for chunks and decodes in one launch; `together_s` is `beyond_launch_s` of the chunks."""
    grid, alone, num_decodes = cost.mixed_grid, cost.chunk_grid, shape.num_decodes
    mean, attended = context_read(shape) / num_decodes, shape.decode_context / num_decodes
    seconds = 0.0
    for place in range(shape.num_chunks):
        chunk = chunks[place]
        tokens, before = chunk.num_tokens, chunk.num_computed_tokens
        among_s = one_mixed_s(grid, tokens, before, num_decodes, mean)
        if shape.num_chunks > 1:
            others_s = together_s - (chunk_by_grid_s(alone, tokens, before) - alone.values[0])
            if others_s > 0.0:
                near = nearest(cost.crowding.axes[0], num_decodes)
                among_s += at_line(cost.crowding.values, cost.crowding.axes, near) * others_s
        seconds = larger(seconds, among_s)
    longest = shape.max_decode_context
    if longest > attended:
        num_tokens = shape.num_prefill_tokens
        lost = lost_s_per_token(
            cost, cost.mixed_skew, cost.mixed_unequal, num_tokens, num_decodes, num_decodes
        )
        seconds += lost * (longest - attended)
    near_longest = nearest(grid.axes[2], longest)
    chain_s = at_line(cost.mixed_chain, (grid.axes[2],), near_longest)
    return larger(seconds, chain_s + cost.mixed_skew.chain_s_per_token * (longest - near_longest))


def one_mixed_s(grid: Any, num_tokens: Any, before: Any, num_decodes: Any, mean: Any) -> Any:
    """Seconds for one chunk and `num_decodes` decodes of a mean context."""
    axes = grid.axes
    near, near_before = nearest(axes[0], num_tokens), nearest(axes[1], before)
    near_mean, near_decodes = nearest(axes[2], mean), nearest(axes[3], num_decodes)
    seconds = at_space(grid.values, axes, near, near_before, near_mean, near_decodes)
    if near != num_tokens or near_before != before:
        growth_s = chunk_growth_s(grid.slopes, num_tokens, before)
        seconds += growth_s - chunk_growth_s(grid.slopes, near, near_before)
    if near_mean != mean or near_decodes != num_decodes:
        seconds += beyond_decodes_s(grid.slopes, axes[2], axes[3], num_decodes, mean)
    return seconds
