"""Pieces of long columns: one of all steps of a long run takes hundreds of megabytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

PIECE = 1 << 16
"""Rows of a piece."""


def pieces(num_rows: int) -> Iterator[slice]:
    """Consecutive slices of at most `PIECE` rows that cover `num_rows` rows."""
    for start in range(0, num_rows, PIECE):
        yield slice(start, min(start + PIECE, num_rows))


def column_pieces(
    table: Mapping[str, NDArray[Any]], names: Sequence[str]
) -> Iterator[tuple[NDArray[Any], ...]]:
    """Some columns of a table, many rows at a time where it can give them so (`table.pieces(*names)`).

    Integers may have as few bits as hold them.
    """
    if hasattr(table, "pieces"):
        yield from table.pieces(*names)
    else:
        yield tuple(table[name] for name in names)
