"""Table files: the Parquet files of a run folder, read back as the tables they were."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from cbsim.base.errors import CbsimError, damage
from cbsim.results.latency import HAND_OVER_PARTS, PARTS, TTFT_PARTS
from cbsim.results.tables import OPTIONAL_COLUMNS, TABLES, ArrowTable, Field, arrow_field

MOST = 1e18
"""No figure of a run is larger, in seconds, tokens or whatever its column counts."""


def read_table(path: Path, name: str) -> ArrowTable:
    """The table `name` in a file; columns rewritten by other tools get their own types again.

    Raises `CbsimError` with a line for each column that is missing or holds something else, or if the file
    can't be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table: ArrowTable = pq.read_table(path)
    except damage() as error:
        raise CbsimError(f"{path}: can't be read: {first_line(error)}") from error
    found = set(table.column_names)
    optional = set().union(*(group for group in OPTIONAL_COLUMNS if not group & found))
    missing = [field.name for field in TABLES[name].fields if field.name not in found | optional]
    if missing:
        raise CbsimError(f"{path}: no table of {name} of a run: has no column {', '.join(missing)}")
    problems = []
    for field in (field for field in TABLES[name].fields if field.name in found):
        try:
            table = _with_column(table, field)
        except (ValueError, pa.ArrowException) as error:
            problems.append(f"{path}: column {field.name}: {first_line(error)}")
    if not problems and name == "requests":
        problems = [f"{path}: column {problem}" for problem in (*_repeated(table), *_unknown_parts(table))]
    if problems:
        raise CbsimError(*problems)
    return table


def write_tables(tables: Iterator[ArrowTable], path: Path, name: str) -> str | None:
    """Write the table `name`, given in tables one behind the other; none: no file. Returns its hash.

    Encoded by type, it takes two thirds of the time and bytes of Parquet's own choices.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    first = next(tables, None)
    if first is None:
        return None
    encodings = {pa.int64(): "DELTA_BINARY_PACKED", pa.float64(): "BYTE_STREAM_SPLIT"}
    digest = TableHash(name)
    with pq.ParquetWriter(
        path,
        first.schema,
        compression="zstd",
        use_dictionary=[field.name for field in first.schema if pa.types.is_dictionary(field.type)],
        column_encoding={
            field.name: encodings[field.type] for field in first.schema if field.type in encodings
        },
    ) as writer:
        for table in chain([first], tables):
            writer.write_table(table)
            digest.add(table)
    return digest.told()


def hash_table(table: ArrowTable, name: str) -> str:
    """The `TableHash` of a whole table."""
    digest = TableHash(name)
    digest.add(table)
    return digest.told()


class TableHash:
    """SHA-256 of what the table `name` holds, whichever tool has written its file, in how many pieces."""

    def __init__(self, name: str) -> None:
        self._fields = TABLES[name].fields
        self._hashes: dict[str, list[Any]] = {}
        """By column: of which rows have a value, of lengths of texts, of the values."""

    def add(self, table: ArrowTable) -> None:
        """Further rows."""
        import pyarrow as pa
        import pyarrow.compute as pc

        for field in (field for field in self._fields if field.name in table.column_names):
            column = table.column(field.name)
            has_value, lengths, values = self._hashes.setdefault(
                field.name, [hashlib.sha256() for _ in range(3)]
            )
            if pa.types.is_floating(column.type):
                column = _nan_as_null(column)
            _update(has_value, column.is_valid().cast(pa.uint8()))
            column = column.drop_null()
            if field.type not in ("label", "string"):
                _update(values, column)
                continue
            column = column.cast(pa.large_string())
            _update(lengths, pc.binary_length(column))
            for chunk in column.chunks:
                _, places, texts = chunk.buffers()
                ends = np.frombuffer(places, np.int64)[chunk.offset : chunk.offset + len(chunk) + 1]
                values.update(texts[ends[0] : ends[-1]])

    def told(self) -> str:
        """The hash of all rows added so far, as hexadecimal digits."""
        digest = hashlib.sha256()
        for name, hashes in self._hashes.items():
            digest.update(name.encode())
            for each in hashes:
                digest.update(each.digest())
        return digest.hexdigest()


def _update(digest: Any, column: Any) -> None:
    """Hash the numbers of a column without nulls as they lie in memory; `to_numpy` would import pandas."""
    for chunk in column.chunks:
        if len(chunk):
            data = np.frombuffer(chunk.buffers()[1], chunk.type.to_pandas_dtype())
            digest.update(data[chunk.offset : chunk.offset + len(chunk)])


def _nan_as_null(column: Any) -> Any:
    """Numbers, null where other tools write NaN for what is missing. `pa.scalar` of None imports pandas."""
    import pyarrow as pa
    import pyarrow.compute as pc

    is_nan = pc.is_nan(column)
    if not pc.any(is_nan).as_py():
        return column
    return pc.if_else(is_nan, pa.nulls(1, column.type)[0], column)


def _repeated(requests: ArrowTable) -> Iterator[str]:
    """What is wrong with names of requests that stand there several times."""
    import pyarrow.compute as pc

    names = requests.column("request_id")
    if pc.count_distinct(names).as_py() < len(names):
        counts = names.value_counts()
        first = counts.filter(pc.greater(counts.field("counts"), 1))[0]
        yield f"request_id: got {first['values'].as_py()!r} {first['counts']} times; expected each name once"


def _unknown_parts(requests: ArrowTable) -> Iterator[str]:
    """What is wrong with parts of latencies that are empty where the latency isn't."""
    import pyarrow.compute as pc

    for latency, parts in (("e2e_s", PARTS | HAND_OVER_PARTS), ("ttft_s", TTFT_PARTS)):
        is_known = requests.column(latency).is_valid()
        for column in [name for name in parts.values() if name in requests.column_names]:
            num_empty = pc.sum(pc.and_(is_known, requests.column(column).is_null())).as_py()
            if num_empty:
                yield f"{column}: got {_empty_cells(num_empty)} beside {latency}; expected numbers"


def _with_column(table: ArrowTable, field: Field) -> ArrowTable:
    """The table with a column in its own type. Raises `ValueError` with what was got and what is expected."""
    found, wanted = table.column(field.name), arrow_field(field)
    column = (_texts if field.type in ("label", "string") else _numbers)(found, wanted.type)
    if column.null_count and not field.nullable:
        raise ValueError(f"got {_empty_cells(column.null_count)}; expected one value a row")
    place = table.schema.get_field_index(field.name)
    is_same = column is found and table.schema.field(place).equals(wanted)
    return table if is_same else table.set_column(place, wanted, column)


def _texts(column: Any, wanted: Any) -> Any:
    import pyarrow as pa

    if not (_is_text(column.type) or pa.types.is_null(column.type)):
        raise ValueError(f"got {_told(column)}; expected text")
    if column.type == wanted:
        return column
    texts = column.cast(pa.string())
    return texts.dictionary_encode() if pa.types.is_dictionary(wanted) else texts


def _numbers(column: Any, wanted: Any) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)):
        raise ValueError(f"got {_told(column)}; expected numbers")
    if pa.types.is_floating(kind):
        column = _nan_as_null(column)
    if pa.types.is_floating(kind) and pa.types.is_floating(wanted):
        beyond = column.filter(pc.greater(pc.abs(column), MOST))
        if len(beyond):
            raise ValueError(f"got {_told(beyond)}; expected numbers up to {MOST:g}")
    if column.type == wanted:
        return column
    try:
        return column.cast(wanted)
    except pa.ArrowInvalid as error:
        is_whole = pc.and_(pc.is_finite(column), pc.equal(pc.trunc(column), column))
        parts = column.filter(pc.invert(is_whole))
        raise ValueError(f"got {_told(parts)}; expected whole numbers") from error


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _empty_cells(number: int) -> str:
    return "an empty cell" if number == 1 else f"{number:,} empty cells"


def _told(column: Any) -> str:
    """What a column holds, with its first value."""
    filled = column.drop_null()
    example = f" ({filled[0].as_py()!r})" if len(filled) else ""
    return f"{'text' if _is_text(column.type) else column.type}{example}"


def first_line(error: Exception) -> str:
    """The first line of what an error says, as far as a reader is told of it."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return str(error).strip().partition("\n")[0].rstrip(" :")
