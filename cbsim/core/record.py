"""The record of a run: what the core's log held, taken piece by piece, as columns."""

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
    "gaps": np.dtype("f8"),
    "batches": layout.BATCH_ROW,
}


class Record:
    """Rows of each table of a `Log`, in the order in which they were written."""

    def __init__(self) -> None:
        self._pieces: dict[str, list[Array]] = {name: [] for name in TABLES}

    def take(self, log: Log) -> None:
        """Move all rows of a log here; it is empty afterwards."""
        for name, dtype in TABLES.items():
            num_rows = (
                int(getattr(log.lengths, name)) if not _is_array(log.lengths) else int(log.lengths[name])
            )
            if num_rows:
                rows = getattr(log, name)
                self._pieces[name].append(_copied(rows, num_rows, dtype))
            if _is_array(log.lengths):
                log.lengths[name] = 0
            else:
                setattr(log.lengths, name, 0)

    def num_rows(self, table: str) -> int:
        """How many rows were taken."""
        return sum(map(len, self._pieces[table]))

    def rows(self, table: str) -> Array:
        """All rows of a table, in one array."""
        pieces = self._pieces[table]
        if len(pieces) != 1:
            pieces[:] = [np.concatenate([np.empty(0, TABLES[table]), *pieces])]
        return pieces[0]


class StepColumns(Mapping[str, Array]):
    """`RunLog.steps`: the steps of all replicas in order of (start, replica), a column at a time."""

    def __init__(self, rows: Array, names: tuple[str, ...], num_blocks: int, num_replicas: int) -> None:
        self._rows = rows
        self._names = names
        self._num_blocks = num_blocks
        self._order = np.lexsort((rows["replica"], rows["start_s"])) if num_replicas > 1 else None

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, name: str) -> Array:
        if name == "kv_blocks_total":
            return np.broadcast_to(np.int64(self._num_blocks), len(self._rows))
        column = self._rows["num_decode_seqs" if name == "num_decode_tokens" else name]
        if self._order is not None:
            column = column[self._order]
        return np.array(column, dtype=np.float64 if column.dtype.kind == "f" else np.int64)


def _is_array(lengths: Any) -> bool:
    return isinstance(lengths, np.void)


def _copied(rows: Any, num_rows: int, dtype: np.dtype[Any]) -> Array:
    if isinstance(rows, np.ndarray):
        return rows[:num_rows].copy()
    if dtype.names is None:
        return np.array(rows[:num_rows], dtype=dtype)
    return packed(rows[:num_rows], dtype)
