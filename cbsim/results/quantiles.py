"""Exact quantiles of values that come in pieces, without holding or sorting all of them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from cbsim.results.run_log import Column

LEADING_BITS = 20
"""Values fall into bins by the leading bits of their binary form, which order numbers >= 0 as they are."""


def weighted_quantiles(pieces: Iterable[tuple[Column, Column]], quantiles: Column) -> Column:
    """`numpy.quantile(numpy.repeat(values, counts), quantiles)` to the last bit.

    `pieces` are arrays of values >= 0 and of how often each occurs (integers), to be gone through twice: a
    first pass counts by bins, a second one keeps the bins that hold the ranks wanted.
    """
    num_in = np.zeros(1 << LEADING_BITS)
    for values, counts in pieces:
        np.add(num_in, np.bincount(_bins(values), counts, len(num_in)), out=num_in)
    num_up_to = np.cumsum(num_in).astype(np.int64)
    position = (int(num_up_to[-1]) - 1) * quantiles
    below, above = np.floor(position), np.ceil(position)
    is_wanted = np.zeros(len(num_in), dtype=bool)
    for rank in (below, above):
        is_wanted[np.searchsorted(num_up_to, rank, side="right")] = True
    kept = [(values[is_wanted[_bins(values)]], counts[is_wanted[_bins(values)]]) for values, counts in pieces]
    values = np.concatenate([each for each, _ in kept])
    counts = np.concatenate([each for _, each in kept])
    order = np.argsort(values)
    values, num_kept_up_to = values[order], np.cumsum(counts[order])
    # Values in bins that were not kept lie before those of later bins.
    num_left_out = np.cumsum(np.where(is_wanted, 0, num_in)).astype(np.int64)

    def at(rank: Column) -> Column:
        place = np.searchsorted(num_up_to, rank, side="right")
        found: Column = values[np.searchsorted(num_kept_up_to, rank - num_left_out[place], side="right")]
        return found

    # numpy's own interpolation between two neighbours: its formula may change, the last bit follows it.
    between = zip(at(below), at(above), position - below, strict=True)
    return np.array([np.quantile(np.array([low, high]), weight) for low, high, weight in between])


def _bins(values: Column) -> Column:
    bins: Column = (values + 0.0).view(np.int64) >> (64 - LEADING_BITS)
    return bins
