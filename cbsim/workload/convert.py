"""Conversion: any workload written as a trace file in cbsim's own format."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from cbsim.base.errors import WorkloadError
from cbsim.base.paths import written_whole
from cbsim.base.spreadsheet import escaped
from cbsim.workload.request import BATCH_SIZE, COLUMN_TYPES, Request

SUFFIXES = (".jsonl", ".csv", ".parquet")
COMPRESSED = (".gz", ".zst")

REQUIRED = list(COLUMN_TYPES)[:4]
OPTIONAL = [*list(COLUMN_TYPES)[4:], "prompt", "delay_s"]
"""Columns that are written if some request has a value there."""
_ARROW_TYPES: dict[type, pa.DataType] = {float: pa.float64(), np.int64: pa.int64(), object: pa.string()}


class Source(Protocol):
    """Whatever has requests, such as a `Workload`."""

    def requests(self) -> Iterator[Request]:
        """The same ones, new, at each call, in order of arrival."""


def convert(workload: Source, path: Path) -> int:
    """Writes a workload's requests, all its settings applied; reading the file gives equal requests.

    The suffix tells how: `.jsonl`, `.csv` (both perhaps with `.gz` or `.zst`) or `.parquet`. The file appears
    whole or not at all. Returns how many requests there are; raises `WorkloadError` for another suffix or a
    wrong workload, `CbsimError` if the file can't be written.
    """
    is_compressed = path.suffix in COMPRESSED
    kind = Path(path.stem).suffix if is_compressed else path.suffix
    if kind not in SUFFIXES or (kind == ".parquet" and is_compressed):
        raise WorkloadError(
            f"{path}: got suffix '{kind}{path.suffix if is_compressed else ''}'; "
            f"allowed: .jsonl and .csv, also with .gz or .zst, and .parquet"
        )
    columns = [*REQUIRED, *_optional_columns(workload.requests())]
    write = _write_parquet if kind == ".parquet" else partial(_write_text, is_csv=kind == ".csv")
    with written_whole(path) as whole, _opened(whole, path.suffix) as file:
        return write(workload.requests(), columns, file)


@contextmanager
def _opened(path: Path, suffix: str) -> Iterator[IO[bytes]]:
    if suffix == ".gz":  # without name and time, so that equal requests make equal bytes
        with path.open("wb") as plain, gzip.GzipFile("", "wb", fileobj=plain, mtime=0) as file:
            yield file  # type: ignore[misc]
    elif suffix == ".zst":
        with pa.output_stream(str(path), compression="zstd") as file:
            yield file
    else:
        with path.open("wb") as file:
            yield file


def _optional_columns(requests: Iterable[Request]) -> list[str]:
    """The optional columns in which some request says something."""
    wanted: set[str] = set()
    for request in requests:
        wanted.update(name for name in OPTIONAL if _said(request, name) not in (None, 0))
        if request.follows >= 0:
            wanted.add("delay_s")
        if len(wanted) == len(OPTIONAL):
            break
    return [name for name in OPTIONAL if name in wanted]


def _write_text(requests: Iterable[Request], columns: list[str], file: IO[bytes], *, is_csv: bool) -> int:
    num_requests = 0
    if is_csv:
        file.write(",".join(columns).encode() + b"\n")
    for batch in _batched(requests):
        text = io.StringIO(newline="")
        if is_csv:
            rows = ([escaped(_field(request, name)) for name in columns] for request in batch)
            csv.writer(text, lineterminator="\n").writerows(rows)
        else:
            for request in batch:
                row = {name: _said(request, name) for name in columns}
                said = {name: value for name, value in row.items() if value is not None}
                text.write(json.dumps(said, ensure_ascii=False) + "\n")
        file.write(text.getvalue().encode())
        num_requests += len(batch)
    return num_requests


def _write_parquet(requests: Iterable[Request], columns: list[str], file: IO[bytes]) -> int:
    num_requests = 0
    kinds = {**COLUMN_TYPES, "delay_s": float}
    schema = pa.schema([(name, _ARROW_TYPES[kinds.get(name, object)]) for name in columns])
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        for batch in _batched(requests):
            cells = [[_field(request, name) for request in batch] for name in columns]
            writer.write_batch(pa.record_batch(list(map(pa.array, cells, schema.types)), schema=schema))
            num_requests += len(batch)
    return num_requests


def _batched(requests: Iterable[Request]) -> Iterator[list[Request]]:
    remaining = iter(requests)
    while batch := list(islice(remaining, BATCH_SIZE)):
        yield batch


def _said(request: Request, name: str) -> Any:
    """What a request has in a column; `None` for nothing."""
    return None if name == "delay_s" and request.follows < 0 else getattr(request, name)


def _field(request: Request, name: str) -> Any:
    value = _said(request, name)
    return json.dumps(value, ensure_ascii=False) if name == "prompt" and value is not None else value
