"""Tables: the columns of a CSV, JSONL or Parquet file, in chunks, as they stand there."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from cbsim.workload.file_mistakes import Mistakes
from cbsim.workload.textfile import Block, read_blocks

RawColumn = Any
"""A `pyarrow.Array` (of strings, from a CSV file) or a list of JSON values."""

_PARQUET_MAGIC = b"PAR1"
_MAX_SHOWN = 40


@dataclass(frozen=True, slots=True)
class TableChunk:
    """Some rows of a table: raw columns of equal length, and where each row stands in the file."""

    columns: dict[str, RawColumn]
    num_rows: int
    line_of: Callable[[int], int]
    """From a row of the chunk to its line (Parquet: row number, from 1) in the file."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table that is read once, chunk by chunk."""

    names: list[str]
    """The columns found: a header's, a schema's, or the keys of the first JSON object."""
    has_fixed_columns: bool
    """False for JSON lines, where a key may appear for the first time in any row."""
    header_line: int
    """Where they stand, for error lines; 0 is the file as a whole."""
    chunks: Callable[[Sequence[str]], Iterator[TableChunk]]
    """Reads the columns named; a JSON key that a row lacks is None there."""


def open_table(path: Path, mistakes: Mistakes) -> Table | None:
    """The table in a file, its kind told by its first bytes; `None`, with a mistake added, if it has none."""
    if is_parquet(path):
        return _open_parquet(path, mistakes)
    blocks = read_blocks(path, mistakes)
    for block in blocks:
        lines = block.lines()
        if not lines:
            continue
        line, text = lines[0]
        if text.lstrip().startswith(b"{"):
            return _jsonl_table(line, text, block, blocks, mistakes)
        if text.lstrip().startswith(b"["):
            mistakes.add(line, 0, "got a JSON array; allowed: one JSON object a line")
            return None
        return _csv_table(line, text, block, blocks, mistakes)
    if not mistakes:
        mistakes.add(0, 0, "got an empty file; allowed: a CSV header, JSON lines or Parquet")
    return None


def is_parquet(path: Path) -> bool:
    """Whether the file is Parquet, by its first bytes."""
    with path.open("rb") as file:
        return file.read(len(_PARQUET_MAGIC)) == _PARQUET_MAGIC


def shorten(text: str) -> str:
    """A piece of a file for an error line."""
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _csv_table(
    line: int, header: bytes, block: Block, blocks: Iterator[Block], mistakes: Mistakes
) -> Table | None:
    names = [name.strip() for name in next(csv.reader([header.decode().rstrip("\r")]))]
    repeated = sorted({name for name in names if names.count(name) > 1})
    for name in repeated:
        mistakes.add(line, 0, f"{name}: got this column {names.count(name)} times; allowed: once")
    if repeated:
        return None
    end_of_header = _offset_of_line(block, line + 1)
    first = Block(line + 1, block.data[end_of_header:])

    def chunks(columns: Sequence[str]) -> Iterator[TableChunk]:
        for part in _chain(first, blocks):
            if part.data.strip(b"\r\n"):
                yield _csv_chunk(part, names, columns, mistakes)

    return Table(names, True, line, chunks)


def _csv_chunk(block: Block, names: list[str], columns: Sequence[str], mistakes: Mistakes) -> TableChunk:
    odd: list[Any] = []

    def keep_odd(row: Any) -> str:
        odd.append(row)
        return "skip"

    read = pyarrow.csv.read_csv(
        pa.BufferReader(block.data),
        pyarrow.csv.ReadOptions(column_names=names, use_threads=False, block_size=len(block.data) + 1),
        pyarrow.csv.ParseOptions(invalid_row_handler=keep_odd),
        pyarrow.csv.ConvertOptions(
            include_columns=list(columns),
            column_types=dict.fromkeys(names, pa.string()),
            strings_can_be_null=False,
            null_values=[],
        ),
    )
    skipped = {row.number - 1 for row in odd}

    @cache
    def lines() -> list[int]:
        return [line for i, (line, _) in enumerate(block.lines()) if i not in skipped]

    if odd:
        numbers = [line for line, _ in block.lines()]
        for row in odd:
            got = f"{row.actual_columns} columns ({shorten(row.text)})"
            mistakes.add(numbers[row.number - 1], 0, f"got {got}; allowed: {len(names)}")
    found = {name: read.column(name).combine_chunks() for name in columns}
    return TableChunk(found, read.num_rows, lambda row: lines()[row])


def _jsonl_table(
    line: int, text: bytes, block: Block, blocks: Iterator[Block], mistakes: Mistakes
) -> Table | None:
    try:
        names = list(json.loads(text))
    except ValueError:
        _tell_broken_json(line, text, mistakes)
        return None

    def chunks(columns: Sequence[str]) -> Iterator[TableChunk]:
        for part in _chain(block, blocks):
            numbered = _json_objects(part, mistakes)
            rows = [row for _, row in numbered]
            found = {name: [row.get(name) for row in rows] for name in columns}
            yield TableChunk(found, len(rows), lambda row, numbered=numbered: numbered[row][0])  # type: ignore[misc]

    return Table(names, False, line, chunks)


def _json_objects(block: Block, mistakes: Mistakes) -> list[tuple[int, dict[str, Any]]]:
    """The objects of a block with their lines; parsed together, which is faster, where all are sound."""
    lines = block.lines()
    try:
        together = json.loads(b"[" + b",".join(text for _, text in lines) + b"]")
    except ValueError:
        together = []
    if len(together) == len(lines) and set(map(type, together)) <= {dict}:
        return [(line, row) for (line, _), row in zip(lines, together, strict=True)]
    found = []
    for line, text in lines:
        try:
            row = json.loads(text)
        except ValueError:
            row = None
        if isinstance(row, dict):
            found.append((line, row))
        else:
            _tell_broken_json(line, text, mistakes)
    return found


def _tell_broken_json(line: int, text: bytes, mistakes: Mistakes) -> None:
    mistakes.add(line, 0, f"got {shorten(text.decode().strip())}; allowed: one whole JSON object")


def _open_parquet(path: Path, mistakes: Mistakes) -> Table | None:
    try:
        file = pyarrow.parquet.ParquetFile(str(path))
    except (pa.ArrowInvalid, OSError) as error:
        mistakes.add(0, 0, f"got damaged Parquet data ({str(error).splitlines()[0]}); allowed: a whole file")
        return None

    def chunks(columns: Sequence[str]) -> Iterator[TableChunk]:
        first = 1
        for batch in file.iter_batches(columns=list(columns)):
            found = {name: batch.column(batch.schema.get_field_index(name)) for name in columns}
            yield TableChunk(found, batch.num_rows, lambda row, first=first: first + row)  # type: ignore[misc]
            first += batch.num_rows

    return Table(list(file.schema_arrow.names), True, 0, chunks)


def _chain(first: Block, rest: Iterator[Block]) -> Iterator[Block]:
    yield first
    yield from rest


def _offset_of_line(block: Block, line: int) -> int:
    offset = 0
    for _ in range(line - block.first_line):
        end = block.data.find(b"\n", offset)
        if end < 0:
            return len(block.data)
        offset = end + 1
    return offset
