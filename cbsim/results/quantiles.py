"""Exact quantiles of values that come in pieces, without holding or sorting all of them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from cbsim.results.run_log import Column

MANTISSA_BITS = 10
"""Values fall into bins by their exponents and so many leading bits of their mantissas."""
FIRST_EXPONENT, NUM_EXPONENTS = -20, 32
"""Of two: smaller values fall into the first bin, larger ones into the last."""
NUM_BINS = NUM_EXPONENTS << MANTISSA_BITS


def weighted_quantiles(pieces: Iterable[tuple[Column, Column]], quantiles: Column) -> Column:
    """`numpy.quantile(numpy.repeat(values, counts), quantiles)` to the last bit.

    `pieces` are arrays of values >= 0 and of how often each occurs (integers), to be gone through twice: a
    first pass counts by bins, a second one keeps the bins that hold the ranks wanted.
    """
    num_in = np.zeros(NUM_BINS)
    for values, counts in pieces:
        num_in += np.bincount(_bins(values), counts, NUM_BINS)
    num_up_to = np.cumsum(num_in).astype(np.int64)
    position = (int(num_up_to[-1]) - 1) * quantiles
    below, above = np.floor(position), np.ceil(position)
    is_wanted = np.zeros(NUM_BINS, dtype=bool)
    for rank in (below, above):
        is_wanted[np.searchsorted(num_up_to, rank, side="right")] = True
    kept = []
    for values, counts in pieces:
        is_kept = is_wanted[_bins(values)]
        kept.append((values[is_kept], counts[is_kept]))
    values, counts = (np.concatenate(columns) for columns in zip(*kept, strict=True))
    order = np.argsort(values)
    values, num_kept_up_to = values[order], np.cumsum(counts[order], dtype=np.int64)
    # Values in bins that were not kept lie before those of later bins.
    num_left_out = np.cumsum(np.where(is_wanted, 0, num_in)).astype(np.int64)

    def at(rank: Column) -> Column:
        place = np.searchsorted(num_up_to, rank, side="right")
        found: Column = values[np.searchsorted(num_kept_up_to, rank - num_left_out[place], side="right")]
        return found

    low, high, share = at(below), at(above), position - below
    # From the nearer of the two, as numpy does: otherwise the last bit differs.
    between: Column = np.where(share < 0.5, low + (high - low) * share, high - (high - low) * (1 - share))
    return between


def _bins(values: Column) -> Column:
    leading = (values + 0.0).view(np.int64) >> (52 - MANTISSA_BITS)
    return np.clip(leading - ((1023 + FIRST_EXPONENT) << MANTISSA_BITS), 0, NUM_BINS - 1, out=leading)
