"""The record of a run: what the core's log held, taken piece by piece, column by column."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbsim.base.records import packed
from cbsim.core import layout
from cbsim.core.layout import Log

Array = NDArray[Any]

TABLES: dict[str, np.dtype[Any]] = {
    "steps": layout.STEP_ROW,
    "events": layout.EVENT_ROW,
    "prefills": layout.PREFILL_ROW,
    "decodes": layout.DECODES_ROW,
    "gaps": np.dtype([("gap_s", "f8")]),
    "batches": layout.BATCH_ROW,
}
"""The tables of a `Log`."""


class Record:
    """The columns of each table of a `Log`, rows in the order in which they were written."""

    def __init__(self) -> None:
        self._pieces: dict[tuple[str, str], list[Array]] = {
            (table, name): [] for table, dtype in TABLES.items() for name in dtype.names or ()
        }

    def take(self, log: Log) -> None:
        """Move all rows of a log here; it is empty afterwards."""
        lengths = log.lengths
        for table, dtype in TABLES.items():
            is_record = isinstance(lengths, np.void)
            num_rows = int(lengths[table] if is_record else getattr(lengths, table))
            if num_rows:
                rows = _rows(getattr(log, table), num_rows, dtype)
                for name in dtype.names or ():
                    self._pieces[table, name].append(rows[name].copy())
            if is_record:
                lengths[table] = 0
            else:
                setattr(lengths, table, 0)

    def column(self, table: str, name: str) -> Array:
        """A column of a table, as it was written: integers of 32 bits where the log has those."""
        pieces = self._pieces[table, name]
        if len(pieces) != 1:
            pieces[:] = [np.concatenate([np.empty(0, TABLES[table][name]), *pieces])]
        return pieces[0]

    def columns(self, table: str) -> dict[str, Array]:
        """All columns of a table."""
        return {name: self.column(table, name) for name in TABLES[table].names or ()}


class StepColumns(Mapping[str, Array]):
    """`RunLog.steps`: the steps of one replica or of all, a column at a time."""

    def __init__(
        self, record: Record, names: tuple[str, ...], num_blocks: int, places: Array | slice
    ) -> None:
        """`places` are the rows of the record in the order wanted."""
        self._record = record
        self._names = names
        self._num_blocks = num_blocks
        self._places = places

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, name: str) -> Array:
        if name == "kv_blocks_total":
            num_rows = len(self._record.column("steps", "step")[self._places])
            return np.broadcast_to(np.int64(self._num_blocks), num_rows)
        column = self._record.column("steps", "num_decode_seqs" if name == "num_decode_tokens" else name)
        chosen = column[self._places]
        return chosen if chosen.dtype.kind == "f" else chosen.astype(np.int64)


def _rows(rows: Any, num_rows: int, dtype: np.dtype[Any]) -> Array:
    """The first rows of a table, of records or of objects."""
    if isinstance(rows, np.ndarray):
        return rows[:num_rows].view(dtype)
    if isinstance(rows[0], float):
        return np.array(rows[:num_rows]).view(dtype)
    return packed(rows[:num_rows], dtype)
