"""Tables: the columns of a CSV, JSON (either may be compressed) or Parquet file, as they stand there."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from cbsim.base.errors import WorkloadError, damage
from cbsim.base.spreadsheet import ESCAPED
from cbsim.base.text_files import parse_json
from cbsim.base.units import MIB
from cbsim.workload.documents import Row, layout_of, names_in, parse_document, value_at

MAX_LINES_TOLD = 20
_KEPT = 50 * MAX_LINES_TOLD


class Mistakes:
    """The mistakes of one file in order of line and column: the first are told, the rest counted."""

    def __init__(self, file: str, unit: str = "") -> None:
        """`unit` goes before a row number in a file that has no lines: `trace.parquet:row 3`."""
        self._file = file
        self.unit = unit
        self._kept: list[tuple[int, int, str]] = []
        self._num_mistakes = 0

    def __bool__(self) -> bool:
        return self._num_mistakes > 0

    def add(self, line: int, column: int, text: str) -> None:
        """One mistake; line 0 is the file as a whole, `column` orders the mistakes of a line."""
        self._num_mistakes += 1
        place = f"{self._file}:{self.unit}{line}" if line else self._file
        self._kept.append((line, column, f"{place}: {text}"))
        if len(self._kept) > 2 * _KEPT:
            self._kept = sorted(self._kept)[:_KEPT]

    def error(self) -> WorkloadError:
        """The error that tells them: at most 20 lines, then how many more there are."""
        lines = [text for _, _, text in sorted(self._kept)[:MAX_LINES_TOLD]]
        num_more = self._num_mistakes - len(lines)
        if num_more:
            lines.append(f"{self._file}: ... and {num_more:,} more")
        return WorkloadError(*lines)


RawColumn = Any
"""A `pyarrow.Array` (of strings, from a CSV file) or a list of JSON values."""

_PARQUET_MAGIC = b"PAR1"
BLOCK_BYTES = 4 * MIB
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_UTF8_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
_LOOKED_AT = 1000
"""Bytes at the start of a text by which its encoding is known."""
_MAX_SHOWN = 40


class Block(NamedTuple):
    """Some whole lines of a file, known to be UTF-8."""

    first_line: int
    data: bytes

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """The lines that aren't blank, each with its number in the file."""
        for number, line in enumerate(self.data.split(b"\n"), self.first_line):
            if line.rstrip(b"\r"):
                yield number, line


class TableChunk(NamedTuple):
    """Some rows of a table: raw columns of equal length, and where each row stands in the file."""

    columns: dict[str, RawColumn]
    lines: Sequence[int]
    """The line (Parquet: row number, from 1) of each row in the file."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table that is read once, chunk by chunk."""

    names: list[str]
    """The columns found: a header's, a schema's, or the keys of the first JSON object."""
    header_line: int
    """Where they stand, for error lines; 0 is the file as a whole."""
    chunks: Callable[[Sequence[str]], Iterator[TableChunk]]
    """Reads the columns named; a JSON key that a row lacks is None there."""
    has_fixed_columns: bool = True
    """False for JSON, where a key may appear for the first time in any row."""
    notes: tuple[str, ...] = ()
    """What to know of how its rows were found."""

    def without(self, flags: Mapping[str, Callable[[Any], bool]], count: Callable[[int], None]) -> Table:
        """Leave out the rows for which a flag is true of its column; `count` gets their number by chunk."""
        present = {
            name: flag for name, flag in flags.items() if name in self.names or not self.has_fixed_columns
        }

        def chunks(columns: Sequence[str]) -> Iterator[TableChunk]:
            for chunk in self.chunks([*dict.fromkeys([*columns, *present])]):
                values = {name: _as_list(chunk.columns[name]) for name in present}
                flagged = {
                    row
                    for name, flag in present.items()
                    for row, value in enumerate(values[name])
                    if flag(value)
                }
                kept = [row for row in range(len(chunk.lines)) if row not in flagged]
                count(len(flagged))
                if not flagged:
                    yield chunk
                    continue
                found = {name: _as_list(chunk.columns[name]) for name in columns}
                found = {name: [column[row] for row in kept] for name, column in found.items()}
                yield TableChunk(found, [chunk.lines[row] for row in kept])

        return replace(self, chunks=chunks) if present else self


def _as_list(raw: RawColumn) -> list[Any]:
    values: list[Any] = raw if isinstance(raw, list) else raw.to_pylist()
    return values


def open_table(path: Path, mistakes: Mistakes) -> Table | None:
    """The table in a file, its kind told by its first bytes; `None`, with a mistake added, if it has none."""
    if is_parquet(path):
        return _open_parquet(path, mistakes)
    blocks = _read_blocks(path, mistakes)
    for block in blocks:
        if (first := next(block.lines(), None)) is None:
            continue
        line, text = first
        if text.lstrip().startswith((b"{", b"[")):
            return _json_table(line, text, chain([block], blocks), mistakes)
        below_header = block.data.partition(text)[2].partition(b"\n")[2]
        return _csv_table(line, text, chain([Block(line + 1, below_header)], blocks), mistakes)
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


def _read_blocks(path: Path, mistakes: Mistakes) -> Iterator[Block]:
    """The file in blocks of whole lines; ends early, with a mistake added, where it can't be read on."""
    with path.open("rb") as file:
        start = file.read(4)
    compression = next((name for magic, name in _MAGIC.items() if start.startswith(magic)), None)
    line, offset = 1, 0
    with io.BufferedReader(pa.input_stream(str(path), compression=compression)) as stream:
        try:
            while data := stream.read(BLOCK_BYTES) + stream.readline():
                if offset == 0 and data.startswith(_UTF16_BOMS):
                    mistakes.add(0, 0, "got UTF-16 text; allowed: UTF-8")
                    return
                if offset == 0 and b"\0" in data[:_LOOKED_AT]:
                    mistakes.add(0, 0, "got NUL bytes, as UTF-16 has them; allowed: UTF-8 text")
                    return
                text = data.removeprefix(_UTF8_BOM) if offset == 0 else data
                data.decode()
                yield Block(line, text)
                line += data.count(b"\n")
                offset += len(data)
        except UnicodeDecodeError as error:
            line += data.count(b"\n", 0, error.start)
            got = f"got byte 0x{data[error.start]:02x} at offset {offset + error.start:,}"
            mistakes.add(line, 0, f"{got}; allowed: UTF-8 text")
        except OSError as error:
            what = "ends early" if "Truncated" in str(error) else "is corrupt"
            mistakes.add(0, 0, f"the {compression} data {what}; allowed: a whole file")


def _csv_table(line: int, header: bytes, blocks: Iterator[Block], mistakes: Mistakes) -> Table | None:
    try:
        names = [name.strip() for name in next(csv.reader([header.decode().rstrip("\r")]))]
    except csv.Error as error:
        mistakes.add(
            line, 0, f"can't be read as a CSV header ({error}); allowed: lines that end in LF or CR LF"
        )
        return None
    num_numbers = sum(re.fullmatch(r"[-+.\d]+(e[-+]?\d+)?", name) is not None for name in names)
    if 2 * num_numbers > len(names):
        told = f"got {shorten(header.decode().strip())} where the names of columns should stand"
        allowed = "a header, such as arrival_s,num_prompt_tokens,num_output_tokens"
        if len(names) == 6 and names[3] in ("", "Gamma", "Weibull"):
            told = "got rates of a client of ServeGen by time, which are no requests"
            allowed = f"the requests that ServeGen draws from them, under {allowed}"
        mistakes.add(line, 0, f"{told}; allowed: {allowed}")
        return None
    repeated = sorted({name for name in names if names.count(name) > 1})
    for name in repeated:
        mistakes.add(line, 0, f"{name}: got this column {names.count(name)} times; allowed: once")
    if repeated:
        return None

    def chunks(columns: Sequence[str]) -> Iterator[TableChunk]:
        for block in blocks:
            if block.data.strip(b"\r\n"):
                yield _csv_chunk(block, names, columns, mistakes)

    return Table(names, line, chunks)


def _csv_chunk(block: Block, names: list[str], columns: Sequence[str], mistakes: Mistakes) -> TableChunk:
    odd: dict[int, str] = {}

    def leave_out(row: Any) -> str:
        odd[row.number - 1] = f"got {row.actual_columns} columns ({shorten(row.text)})"
        return "skip"

    read = pyarrow.csv.read_csv(
        pa.BufferReader(block.data),
        pyarrow.csv.ReadOptions(column_names=names, use_threads=False, block_size=len(block.data) + 1),
        pyarrow.csv.ParseOptions(invalid_row_handler=leave_out),
        pyarrow.csv.ConvertOptions(
            include_columns=list(columns),
            column_types=dict.fromkeys(names, pa.string()),
            strings_can_be_null=False,
            null_values=[],
        ),
    )
    lines: Sequence[int] = range(block.first_line, block.first_line + read.num_rows)
    if odd or read.num_rows != block.data.rstrip(b"\n").count(b"\n") + 1:
        numbers = [line for line, _ in block.lines()]
        if read.num_rows + len(odd) != len(numbers):
            # Lone carriage returns end rows for Arrow, and no lines here.
            lone = next((line for line, text in block.lines() if b"\r" in text[:-1]), numbers[0])
            mistakes.add(lone, 0, "got a carriage return alone; allowed: lines that end in LF or CR LF")
            read, numbers, odd = read.slice(0, 0), [], {}
        for row, got in odd.items():
            mistakes.add(numbers[row], 0, f"{got}; allowed: {len(names)}")
        lines = [line for row, line in enumerate(numbers) if row not in odd]
    cells = {name: read.column(name).combine_chunks() for name in columns}
    if b"'" in block.data:
        import pyarrow.compute as pc

        cells = {name: pc.replace_substring_regex(cell, ESCAPED, r"\1") for name, cell in cells.items()}
    return TableChunk(cells, lines)


def _json_table(line: int, text: bytes, blocks: Iterator[Block], mistakes: Mistakes) -> Table | None:
    """JSON lines that are requests, or whatever JSON documents hold them."""
    try:
        first = parse_json(text)
    except ValueError:
        first = None
    if isinstance(first, dict) and (layout := layout_of(first)) is None:
        return _jsonl_table(line, first, blocks, mistakes)
    data = list(blocks)
    if isinstance(first, dict):
        documents: list[Row] | None = [
            row for block in data for row in _json_objects(block, mistakes).values()
        ]
    else:
        documents = parse_document(b"".join(block.data for block in data))
        layout = layout_of(documents[0]) if documents else None
    if not documents:
        if text.lstrip().startswith(b"["):
            mistakes.add(line, 0, "got a JSON array; allowed: one JSON object a line")
        else:
            _tell_broken_json(line, text, mistakes)
        return None
    notes: list[str] = []
    if layout is not None:
        try:
            documents, notes = layout.read(documents)
        except ValueError as error:
            mistakes.add(0, 0, str(error))
            return None
        except (TypeError, AttributeError, KeyError, OverflowError):
            told = f"{', '.join(layout.marks)}: got values of another kind"
            mistakes.add(0, 0, f"{told}; allowed: what the tool that writes such files writes")
            return None
    return _document_table(documents, tuple(notes), mistakes)


_NUM_LOOKED_AT = 200
"""Requests of a document whose keys are looked at: all of them, in most files."""


def _document_table(rows: list[Row], notes: tuple[str, ...], mistakes: Mistakes) -> Table:
    """Requests whose lines aren't known: error lines count requests instead, from 1."""
    mistakes.unit = "request "

    def chunks(columns: Sequence[str]) -> Iterator[TableChunk]:
        found = {name: [value_at(row, name) for row in rows] for name in columns}
        yield TableChunk(found, range(1, len(rows) + 1))

    return Table(names_in(rows[:_NUM_LOOKED_AT]), 0, chunks, has_fixed_columns=False, notes=notes)


def _jsonl_table(line: int, first: Row, blocks: Iterator[Block], mistakes: Mistakes) -> Table:
    def chunks(columns: Sequence[str]) -> Iterator[TableChunk]:
        for block in blocks:
            rows = _json_objects(block, mistakes)
            found = {name: [value_at(row, name) for row in rows.values()] for name in columns}
            yield TableChunk(found, list(rows))

    return Table(names_in([first]), line, chunks, has_fixed_columns=False)


def _json_objects(block: Block, mistakes: Mistakes) -> dict[int, dict[str, Any]]:
    """The objects of a block by line; parsed together, which is faster, where all are sound."""
    lines = dict(block.lines())
    try:
        together = parse_json(b"[" + b",".join(lines.values()) + b"]")
    except ValueError:
        together = []
    if len(together) == len(lines) and set(map(type, together)) <= {dict}:
        return dict(zip(lines, together, strict=True))
    found = {}
    for line, text in lines.items():
        try:
            row = parse_json(text)
        except ValueError:
            row = None
        if isinstance(row, dict):
            found[line] = row
        else:
            _tell_broken_json(line, text, mistakes)
    return found


def _tell_broken_json(line: int, text: bytes, mistakes: Mistakes) -> None:
    mistakes.add(line, 0, f"got {shorten(text.decode().strip())}; allowed: one whole JSON object")


def _open_parquet(path: Path, mistakes: Mistakes) -> Table | None:
    try:
        file = pyarrow.parquet.ParquetFile(str(path))
        names = list(file.schema_arrow.names)
    except damage() as error:
        _tell_damaged(error, mistakes)
        return None

    def chunks(columns: Sequence[str]) -> Iterator[TableChunk]:
        first = 1
        try:
            for batch in file.iter_batches(columns=list(columns)):
                found = {name: batch.column(batch.schema.get_field_index(name)) for name in columns}
                yield TableChunk(found, range(first, first + batch.num_rows))
                first += batch.num_rows
        except damage() as error:
            _tell_damaged(error, mistakes)

    return Table(names, 0, chunks)


def _tell_damaged(error: Exception, mistakes: Mistakes) -> None:
    told = str(error).partition("\n")[0]
    mistakes.add(0, 0, f"got damaged Parquet data ({told}); allowed: a whole file")
