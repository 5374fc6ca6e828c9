"""The record of a run: what the core's log held, taken piece by piece, column by column."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, BinaryIO
from weakref import finalize

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
    "changes": layout.CHANGE_ROW,
}
"""The tables of a `Log`."""
REQUESTS = "requests"
"""The table of the records of requests, beside those."""
COLUMNS = TABLES | {REQUESTS: layout.REQUEST}


FRESH_BYTES = 8 * MIB
"""Bytes of rows held as they were written; beyond that each column is held in as few bytes as it needs."""
HELD_BYTES = 40 * MIB
"""Bytes of those columns; beyond that all go to a file, and later pieces at once, so that memory does not
grow with the run."""


class Record:
    """The columns of each table of a `Log`, and of requests, rows in the order in which they were written.

    They lie in pieces, of all tables alike: what came in one time is in one piece. Those of a long run lie in
    a temporary file without a name, which goes with the process.
    """

    def __init__(self) -> None:
        names = [(table, name) for table, dtype in COLUMNS.items() for name in dtype.names or ()]
        self._pieces: dict[tuple[str, str], list[Array | Constant | Stored]] = {each: [] for each in names}
        self._fresh: dict[tuple[str, str], list[Array]] = {each: [] for each in names}
        """What came after those pieces."""
        self._fresh_bytes = self._held_bytes = self._num_spooled = 0
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
        if self._fresh_bytes > FRESH_BYTES:
            self.end_piece()

    def add(self, table: str, rows: Array) -> None:
        """Further rows of a table."""
        # Where pieces end must not depend on when requests are written down: sums of reals do.
        self._fresh_bytes += 0 if table == REQUESTS else rows.nbytes
        for name in COLUMNS[table].names or ():
            self._fresh[table, name].append(rows[name].copy())

    def close(self) -> None:
        """No more rows come: of a record that lies in a file, all of it does."""
        if self._file is not None:
            self.end_piece()

    def pieces(self, table: str, *names: str) -> Iterator[tuple[Array, ...]]:
        """Some columns of a table, many rows at a time."""
        for several in zip(*(self._all(table, name) for name in names), strict=True):
            if len(several[0]):
                yield tuple(self._loaded(piece) for piece in several)

    @property
    def num_pieces(self) -> int:
        """How many pieces there are."""
        return len(self._pieces["steps", "step"]) + 1

    def column(self, table: str, name: str, first: int = 0, end: int | None = None) -> Array:
        """A column of a table, as it was written: integers of 32 bits where the log has those.

        From piece `first` up to piece `end`, which is left out; `None` is the last one's end.
        """
        every = [*self._pieces[table, name][first:end]]
        if end is None or end >= self.num_pieces:
            every += self._fresh[table, name]
        pieces = [self._loaded(piece) for piece in every]
        dtype = COLUMNS[table][name]
        if len(pieces) == 1 and pieces[0].dtype == dtype:
            return pieces[0]
        return np.concatenate([np.empty(0, dtype), *pieces], dtype=dtype)

    def columns(self, table: str) -> dict[str, Array]:
        """All columns of a table."""
        return {name: self.column(table, name) for name in COLUMNS[table].names or ()}

    def _all(self, table: str, name: str) -> list[Array | Constant | Stored]:
        return [*self._pieces[table, name], *self._fresh[table, name]]

    def end_piece(self) -> None:
        """Make a piece of what came last, held in as few bytes as it needs, or in the file."""
        for each, fresh in self._fresh.items():
            narrow = _narrowed(fresh) if fresh else NO_ROWS
            self._pieces[each].append(narrow)
            self._held_bytes += 0 if isinstance(narrow, Constant) else narrow.nbytes
            fresh.clear()
        self._fresh_bytes = 0
        if self._held_bytes > (HELD_BYTES if self._file is None else 0):
            self._spool()

    def _spool(self) -> None:
        """Write to the file what is held."""
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="cbsim-")  # noqa: SIM115 - lives as long as this
            finalize(self, self._file.close)
        for pieces in self._pieces.values():
            for place, piece in enumerate(pieces[self._num_spooled :], self._num_spooled):
                if isinstance(piece, np.ndarray):
                    pieces[place] = Stored(len(piece), piece.dtype, self._file.seek(0, 2))
                    self._file.write(piece.data)
        self._held_bytes, self._num_spooled = 0, self.num_pieces - 1

    def _loaded(self, piece: Array | Constant | Stored) -> Array:
        if isinstance(piece, np.ndarray):
            return piece
        if isinstance(piece, Constant):
            return np.full(piece.num_rows, piece.value)
        assert self._file is not None
        self._file.seek(piece.offset)
        return np.frombuffer(self._file.read(piece.num_rows * piece.dtype.itemsize), dtype=piece.dtype)


@dataclass(frozen=True, slots=True)
class Constant:
    """Rows of a column that are all `value`."""

    num_rows: int
    value: Any

    def __len__(self) -> int:
        return self.num_rows


NO_ROWS = Constant(0, 0)


@dataclass(frozen=True, slots=True)
class Stored:
    """Rows of a column in the file at `offset`."""

    num_rows: int
    dtype: np.dtype[Any]
    offset: int

    def __len__(self) -> int:
        return self.num_rows


def _narrowed(parts: list[Array]) -> Array | Constant:
    """Rows of a column in as few bytes as they need."""
    rows = np.concatenate(parts)
    if rows[0] == rows[-1] and (rows == rows[0]).all():
        return Constant(len(rows), rows[0])
    if rows.dtype.kind == "i":
        rows = rows.astype(np.promote_types(*map(np.min_scalar_type, (rows.min(), rows.max()))))
    return rows


class RequestColumns:
    """Requests of which there are `REQUEST` records, or else those of a `Record`.

    They give columns by name and records by row, as an array of records would, which takes several times as
    much memory.
    """

    def __init__(self, rows: Array, record: Record) -> None:
        self._rows = rows if len(rows) else rows.copy()  # A view would hold all that it is a view of.
        self._record = record

    def __len__(self) -> int:
        return len(self["index"])

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            return self._rows[key].copy() if len(self._rows) else self._record.column(REQUESTS, key)
        if len(self._rows):
            return self._rows[key]
        rows = np.empty_like(np.arange(len(self))[key], layout.REQUEST)
        for name in layout.REQUEST.names or ():
            rows[name] = self[name][key]
        return rows[()]


class StepColumns(Mapping[str, Array]):
    """`RunLog.steps`: the steps of all replicas in the order of (start, replica), a column at a time."""

    def __init__(self, record: Record, names: tuple[str, ...], num_blocks: Array) -> None:
        """`num_blocks` are those of each replica."""
        self._record = record
        self._names = names
        self._num_blocks = num_blocks

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __len__(self) -> int:
        return len(self._names)

    def pieces(self, *names: str) -> Iterator[tuple[Array, ...]]:
        """Some columns, many rows at a time, in the order they were written; integers may have few bits."""
        known = [name if name != "kv_blocks_total" else "replica" for name in names]
        for several in self._record.pieces("steps", *known):
            yield tuple(map(self._figures, names, several))

    def in_order(self, names: tuple[str, ...], num_rows: int) -> Iterator[dict[str, Array]]:
        """Some columns, about `num_rows` rows at a time, in order."""
        starts_s = ((piece, self._part("start_s", piece)) for piece in range(self._record.num_pieces))
        spans = [(n, len(start_s), start_s.min(), start_s.max()) for n, start_s in starts_s if len(start_s)]
        pieces, lengths, lows, highs = np.transpose(spans or [(0, 0, -np.inf, np.inf)])
        by_low = np.argsort(lows, kind="stable")
        # Of the rows before the instant at which a piece begins, all are in the pieces that begin earlier.
        cuts_s = lows[by_low[1:]][np.diff(np.cumsum(lengths[by_low]) // num_rows) > 0]
        cuts_s = np.unique(cuts_s[cuts_s > lows.min()])
        for from_s, to_s in pairwise([-np.inf, *cuts_s.tolist(), np.inf]):
            columns: dict[str, list[Array]] = {name: [] for name in ("start_s", "replica", *names)}
            for piece in pieces[(highs >= from_s) & (lows < to_s)].astype(int).tolist():
                start_s = self._part("start_s", piece)
                rows = np.flatnonzero((start_s >= from_s) & (start_s < to_s))
                for name, several in columns.items():
                    several.append((start_s if name == "start_s" else self._part(name, piece))[rows])
            joined = {name: np.concatenate(several) for name, several in columns.items()}
            order = np.lexsort((joined["replica"], joined["start_s"]))
            yield {name: wide(joined[name][order]) for name in names}

    def _part(self, name: str, piece: int) -> Array:
        """A column of one piece."""
        known = "replica" if name == "kv_blocks_total" else name
        return self._figures(name, self._record.column("steps", known, piece, piece + 1))

    def _figures(self, name: str, column: Array) -> Array:
        """A column of the record; `kv_blocks_total` by the column of replicas."""
        return self._num_blocks[column] if name == "kv_blocks_total" else column

    def __getitem__(self, name: str) -> Array:
        if name == "kv_blocks_total":
            return self._num_blocks[self["replica"]]
        column = wide(self._record.column("steps", name))
        return column if len(self._num_blocks) == 1 else column[self._order]

    @cached_property
    def _order(self) -> Array:
        """Rows of the record in order: those of one replica are."""
        return np.lexsort((self._record.column("steps", "replica"), self._record.column("steps", "start_s")))


def wide(column: Array) -> Array:
    """A column whose whole numbers have 64 bits."""
    return column if column.dtype.kind == "f" else column.astype(np.int64)


def _rows(rows: Any, num_rows: int, dtype: np.dtype[Any]) -> Array:
    """The first `num_rows` rows of a table, which holds records or, interpreted, objects."""
    if isinstance(rows, np.ndarray):
        return rows[:num_rows].view(dtype)
    if isinstance(rows[0], float):
        return np.array(rows[:num_rows]).view(dtype)
    return packed(rows[:num_rows], dtype)
