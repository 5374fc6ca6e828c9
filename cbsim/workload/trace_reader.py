"""From a trace file to its columns: every value checked, every mistake told, arrivals in order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbsim.base.errors import WorkloadError
from cbsim.base.registry import did_you_mean
from cbsim.workload.file_mistakes import Mistakes
from cbsim.workload.formats import MOONCAKE_BLOCK_TOKENS, Field, Format, detect
from cbsim.workload.request import Segments
from cbsim.workload.table import Table, TableChunk, is_parquet, open_table
from cbsim.workload.trace_table import TraceTable
from cbsim.workload.values import Bad

Columns = dict[str, NDArray[Any]]
"""By the name of the request's attribute; `arrival` is in the file's own ticks, `number` the row's place."""


def read_trace(path: Path, format_name: str | None = None) -> TraceTable:
    """Reads a trace file of any format (`format_name` tells which; else its columns do).

    Raises `WorkloadError` with a line for each mistake: `file:line: column: got X; allowed: Y`.
    """
    try:
        return _Reader(path).read(format_name)
    except OSError as error:
        raise WorkloadError(f"{path}: can't be read: {error.strerror or error}") from error


class _Reader:
    """One reading of one file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mistakes = Mistakes(str(path), "row " if is_parquet(path) else "")
        self._notes: list[str] = []
        self._ids: set[str] = set()

    def read(self, format_name: str | None) -> TraceTable:
        table = open_table(self._path, self._mistakes)
        if table is None:
            raise self._mistakes.error()
        found = detect(table.names, format_name, table.header_line, self._mistakes)
        if found is None:
            raise self._mistakes.error()
        columns = self._columns(table, found)
        self._mistakes.raise_if_any()
        self._note_unused_columns(table, found)
        if found.drops_failures:
            columns = self._without_failures(columns)
        columns = self._sorted(columns)
        arrivals = columns.pop("arrival")
        if found.has_absolute_clock:
            arrivals = arrivals - arrivals[0]
        return TraceTable(
            columns.pop("number"),
            arrivals / found.ticks_per_s if found.ticks_per_s > 1 else arrivals,
            columns.pop("num_prompt_tokens"),
            columns.pop("num_output_tokens"),
            columns,
            tuple(self._notes),
            found.unit_may_slip,
        )

    def _columns(self, table: Table, found: Format) -> Columns:
        parts = list(self._chunks(table, found))
        if not parts:
            if not self._mistakes:
                self._mistakes.add(0, 0, "got no requests; allowed: at least one")
            return {}
        columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        columns["number"] = np.arange(len(columns["arrival"]))
        return {
            name: column for name, column in columns.items() if name not in found.optional or _is_used(column)
        }

    def _chunks(self, table: Table, found: Format) -> Iterator[Columns]:
        wanted = dict(zip(("arrival", "num_prompt_tokens", "num_output_tokens"), found.required, strict=True))
        for name, column in found.optional.items():
            if column.name in table.names or not table.has_fixed_columns:
                wanted[name] = column
        num_rows = 0
        for chunk in table.chunks([column.name for column in wanted.values()]):
            if chunk.num_rows:
                yield self._chunk(chunk, found, wanted, num_rows)
            num_rows += chunk.num_rows

    def _chunk(self, chunk: TableChunk, found: Format, wanted: dict[str, Field], num_before: int) -> Columns:
        parsed = {name: column.kind.parse(chunk.columns[column.name]) for name, column in wanted.items()}
        columns = {name: values for name, (values, _) in parsed.items()}
        for order, (name, column) in enumerate(wanted.items()):
            bad = parsed[name][1]
            for row, got in bad.items():
                if (
                    found.drops_failures
                    and name == "num_prompt_tokens"
                    and columns["num_output_tokens"][row] == 0
                ):
                    continue
                self._tell(chunk, row, order, f"{column.name}: got {got}; allowed: {column.kind.allowed}")
        self._check_prompts(chunk, columns, parsed["num_prompt_tokens"][1], len(wanted))
        if "request_id" in columns:
            columns["request_id"] = _named(columns["request_id"], num_before)
            self._check_ids(chunk, columns["request_id"].tolist(), list(wanted).index("request_id"))
        return columns

    def _check_prompts(self, chunk: TableChunk, columns: Columns, bad: Bad, order: int) -> None:
        """Whether segments add up to the prompt and ids don't exceed it; `bad` lengths are told already."""
        contents = columns.get("prompt", columns.get("hash_ids"))
        if contents is None:
            return
        check = _wrong_segments if "prompt" in columns else _wrong_ids
        for row, (content, length) in enumerate(
            zip(contents, columns["num_prompt_tokens"].tolist(), strict=True)
        ):
            text = None if content is None or row in bad else check(content, length)
            if text is not None:
                self._tell(chunk, row, order, text)

    def _check_ids(self, chunk: TableChunk, ids: list[str], order: int) -> None:
        new = set(ids)
        if len(new) == len(ids) and self._ids.isdisjoint(new):
            self._ids |= new
            return
        for row, request_id in enumerate(ids):
            if request_id in self._ids:
                self._tell(chunk, row, order, f"request_id: got {request_id} again; allowed: each id once")
            self._ids.add(request_id)

    def _tell(self, chunk: TableChunk, row: int, order: int, text: str) -> None:
        self._mistakes.add(chunk.line_of(row), order, text)

    def _without_failures(self, columns: Columns) -> Columns:
        kept = columns["num_output_tokens"] > 0
        num_failed = int((~kept).sum())
        if num_failed:
            if num_failed == len(kept):
                raise WorkloadError(
                    f"{self._path}: got {num_failed:,} failed requests alone; allowed: one answer or more"
                )
            self._notes.append(
                f"{self._path.name}: failed requests left out (answers of 0 tokens): {num_failed:,}"
            )
        return {name: column[kept] for name, column in columns.items()}

    def _sorted(self, columns: Columns) -> Columns:
        num_early = int((np.diff(columns["arrival"]) < 0).sum())
        if not num_early:
            return columns
        order = np.argsort(columns["arrival"], kind="stable")
        self._notes.append(
            f"{self._path.name}: {num_early:,} of {len(order):,} requests stood after a later one; sorted"
        )
        return {name: column[order] for name, column in columns.items()}

    def _note_unused_columns(self, table: Table, found: Format) -> None:
        known = [column.name for column in (*found.required, *found.optional.values())]
        unused = [name for name in table.names if name not in known]
        if found.notes_unused:
            self._notes += [
                f"{self._path.name}: column '{name}' is not used{did_you_mean(name, known)}"
                for name in unused
            ]


def _wrong_segments(segments: Segments, num_prompt_tokens: int) -> str | None:
    got = sum(num_tokens for _, num_tokens in segments)
    if got == num_prompt_tokens:
        return None
    return f"prompt: got segments of {got:,} tokens; allowed: num_prompt_tokens, {num_prompt_tokens:,}"


def _wrong_ids(ids: NDArray[np.int64], num_prompt_tokens: int) -> str | None:
    most = -(-num_prompt_tokens // MOONCAKE_BLOCK_TOKENS)
    if len(ids) <= most:
        return None
    return (
        f"hash_ids: got {len(ids):,} ids; allowed: at most {most:,} for {num_prompt_tokens:,} prompt tokens"
    )


def _named(ids: NDArray[Any], num_before: int) -> NDArray[Any]:
    """Request ids, rows without one named by their place."""
    return np.array(
        [f"r{num_before + i}" if each is None else each for i, each in enumerate(ids)], dtype=np.object_
    )


def _is_used(column: NDArray[Any]) -> bool:
    """Whether any row has a value of its own in an optional column."""
    if column.dtype == np.object_:
        return any(value is not None for value in column)
    if column.dtype == np.float64:
        return not bool(np.isnan(column).all())
    return bool(column.any())
