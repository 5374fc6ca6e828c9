"""Gaps between tokens, of all requests together: the distinct ones, rising, and how often each occurred."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from cbsim.cluster.engine.recorder import Column


def distinct_gaps(parts: Iterable[Column]) -> tuple[Column, Column]:
    """`(gap_s, gap_count)` of `RunLog` from the gaps of each replica, complex numbers: seconds as the real
    part, how often as the imaginary one.
    """
    several = list(parts)
    together = several[0] if len(several) == 1 else np.concatenate([np.empty(0, np.complex128), *several])
    del several
    # Complex numbers sort by their real part, in place: half the time of np.unique, a third of its memory.
    together.sort()
    gap_s, gap_count = together.real.copy(), together.imag.astype(np.int64)
    del together
    if not len(gap_s):
        return gap_s, gap_count
    is_new = np.concatenate([[True], gap_s[1:] != gap_s[:-1]])
    if is_new.all():
        return gap_s, gap_count
    return gap_s[is_new], np.add.reduceat(gap_count, np.flatnonzero(is_new))
