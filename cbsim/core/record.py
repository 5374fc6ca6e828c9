"""The record of a run: what the core's log held, taken piece by piece, column by column."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from cbsim.base.records import packed
from cbsim.base.units import MIB
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


SPOOLED_BYTES = 64 * MIB
"""Bytes of rows held in memory; beyond that all go to a file, so that memory does not grow with the run."""


class Record:
    """The columns of each table of a `Log`, rows in the order in which they were written.

    Those of a long run lie in a temporary file without a name, which goes with the process.
    """

    def __init__(self) -> None:
        self._pieces: dict[tuple[str, str], list[Array | Stored]] = {
            (table, name): [] for table, dtype in TABLES.items() for name in dtype.names or ()
        }
        self._held_bytes = 0
        self._file: BinaryIO | None = None

    def take(self, log: Log) -> None:
        """Move all rows of a log into this record; the log is empty afterwards."""
        lengths = log.lengths
        for table, dtype in TABLES.items():
            is_record = isinstance(lengths, np.void)
            num_rows = int(lengths[table] if is_record else getattr(lengths, table))
            if num_rows:
                self.add(table, _rows(getattr(log, table), num_rows, dtype))
            if is_record:
                lengths[table] = 0
            else:
                setattr(lengths, table, 0)
        if self._held_bytes > SPOOLED_BYTES:
            self._spool()

    def add(self, table: str, rows: Array) -> None:
        """Further rows of a table."""
        self._held_bytes += rows.nbytes
        for name in TABLES[table].names or ():
            self._pieces[table, name].append(rows[name].copy())

    def num_rows(self, table: str) -> int:
        """How many rows were taken."""
        return sum(map(len, self._pieces[table, (TABLES[table].names or ())[0]]))

    def pieces(self, table: str, *names: str) -> Iterator[tuple[Array, ...]]:
        """Some columns of a table, many rows at a time."""
        for several in zip(*(self._pieces[table, name] for name in names), strict=True):
            yield tuple(self._loaded(piece) for piece in several)

    def column(self, table: str, name: str) -> Array:
        """A column of a table, as it was written: integers of 32 bits where the log has those."""
        pieces = [self._loaded(piece) for piece in self._pieces[table, name]]
        if len(pieces) == 1 and pieces[0].dtype == TABLES[table][name]:
            return pieces[0]
        return np.concatenate([np.empty(0, TABLES[table][name]), *pieces], dtype=TABLES[table][name])

    def columns(self, table: str) -> dict[str, Array]:
        """All columns of a table."""
        return {name: self.column(table, name) for name in TABLES[table].names or ()}

    def _spool(self) -> None:
        """Write all rows held to the file, each column in as few bytes as it needs."""
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="cbsim-")  # noqa: SIM115 - lives as long as this
        for pieces in self._pieces.values():
            held = [piece for piece in pieces if isinstance(piece, np.ndarray)]
            if held:
                pieces[len(pieces) - len(held) :] = [_stored(self._file, held)]
        self._held_bytes = 0

    def _loaded(self, piece: Array | Stored) -> Array:
        if isinstance(piece, np.ndarray):
            return piece
        if piece.offset is None:
            return np.full(piece.num_rows, piece.constant)
        assert self._file is not None
        self._file.seek(piece.offset)
        return np.frombuffer(self._file.read(piece.num_rows * piece.dtype.itemsize), dtype=piece.dtype)


@dataclass(frozen=True, slots=True)
class Stored:
    """Rows of a column in the file at `offset`, or all of them `constant`."""

    num_rows: int
    dtype: np.dtype[Any]
    offset: int | None
    constant: Any = None

    def __len__(self) -> int:
        return self.num_rows


def _stored(file: BinaryIO, parts: list[Array]) -> Stored:
    first, dtype = parts[0][0], parts[0].dtype
    if all((part == first).all() for part in parts):
        return Stored(sum(map(len, parts)), dtype, None, first)
    if dtype.kind == "i":
        ends = (min(part.min() for part in parts), max(part.max() for part in parts))
        dtype = np.promote_types(*map(np.min_scalar_type, ends))
    rows = np.concatenate(parts, dtype=dtype, casting="unsafe")
    offset = file.seek(0, 2)
    file.write(rows.data)
    return Stored(len(rows), dtype, offset)


class StepColumns(Mapping[str, Array]):
    """`RunLog.steps`: the steps of one replica or of all, a column at a time."""

    def __init__(
        self,
        record: Record,
        names: tuple[str, ...],
        num_blocks: int,
        places: Callable[[], Array] | None = None,
    ) -> None:
        """`places` gives the rows of the record in the order wanted; `None`: all, as they were written."""
        self._record = record
        self._names = names
        self._num_blocks = num_blocks
        self._places = places

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __len__(self) -> int:
        return len(self._names)

    def pieces(self, *names: str) -> Iterator[tuple[Array, ...]]:
        """Some columns, many rows at a time, in the order they were written; integers may have few bits."""
        known = [name for name in names if name != "kv_blocks_total"]
        for several in self._record.pieces("steps", *known):
            found = dict(zip(known, several, strict=True))
            total = np.broadcast_to(np.int64(self._num_blocks), len(several[0]))
            yield tuple(total if name == "kv_blocks_total" else found[name] for name in names)

    def __getitem__(self, name: str) -> Array:
        places = None if self._places is None else self._places()
        if name == "kv_blocks_total":
            num_rows = self._record.num_rows("steps") if places is None else len(places)
            return np.broadcast_to(np.int64(self._num_blocks), num_rows)
        column = self._record.column("steps", name)
        return _wide(column if places is None else column[places])


def _wide(column: Array) -> Array:
    return column if column.dtype.kind == "f" else column.astype(np.int64)


def _rows(rows: Any, num_rows: int, dtype: np.dtype[Any]) -> Array:
    """The first `num_rows` rows of a table, which holds records or, interpreted, objects."""
    if isinstance(rows, np.ndarray):
        return rows[:num_rows].view(dtype)
    if isinstance(rows[0], float):
        return np.array(rows[:num_rows]).view(dtype)
    return packed(rows[:num_rows], dtype)
