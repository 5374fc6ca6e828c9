"""Pieces of long columns: one of all steps of a long run takes hundreds of megabytes."""

from __future__ import annotations

from collections.abc import Iterator

PIECE = 1 << 20
"""Rows of a piece."""


def pieces(num_rows: int) -> Iterator[slice]:
    """The rows from the first to the last as slices, one behind the other."""
    for start in range(0, num_rows, PIECE):
        yield slice(start, min(start + PIECE, num_rows))
