"""TraceTable: all requests of a trace file, every value checked, every mistake told, arrivals in order."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbsim.base.errors import WorkloadError, refusals
from cbsim.base.registry import did_you_mean
from cbsim.workload.formats import EXTRAS, Format, detect
from cbsim.workload.request import BATCH_SIZE, ObjectColumn, RequestBatch, Segments
from cbsim.workload.table import Mistakes, Table, TableChunk, is_parquet, open_table

MOONCAKE_BLOCK_TOKENS = 512
"""Prompt tokens that one of Mooncake's `hash_ids` stands for."""
Columns = dict[str, Any]
"""Arrays by their names in `TraceTable`; arrivals are in the file's own ticks."""


@dataclass(frozen=True, slots=True)
class TraceTable(RequestBatch):
    """A trace in memory, as one batch whose prompts are still as the file gave them."""

    contents: ObjectColumn | None = None
    """Prompts as segments, or as arrays of Mooncake's block ids; None where a row has neither."""
    notes: tuple[str, ...] = ()
    """Sentences on lines left out, sorting done and columns not used."""
    unit_may_slip: bool = False
    """Whether arrivals are in seconds only if whoever wrote the file meant so."""
    extras: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """Columns of `formats.EXTRAS`, by the request's field in the core."""

    def batches(self, size: int = BATCH_SIZE) -> Iterator[RequestBatch]:
        """The requests in order of arrival, `size` at a time."""
        for start in range(0, len(self), size):
            batch = self.part(start, start + size)
            if self.contents is not None:
                columns = (self.contents[start : start + size], batch.num_prompt_tokens, batch.number)
                rows = zip(*(column.tolist() for column in columns), strict=True)
                batch = replace(batch, prompt=[_prompt(*row) for row in rows])
            if self.extras:
                columns_of = [column[start : start + size].tolist() for column in self.extras.values()]
                given = [dict(zip(self.extras, row, strict=True)) for row in zip(*columns_of, strict=True)]
                # A list that a request does not bring is none.
                batch = replace(
                    batch, extra=[{k: v for k, v in row.items() if v is not None} for row in given]
                )
            yield batch


def read_trace(path: Path, format_name: str | None = None) -> TraceTable:
    """Reads a trace file of any format (`format_name` tells which; else its columns do).

    Raises `WorkloadError` with a line for each mistake: `file:line: column: got X; allowed: Y`.
    """
    with refusals(path, "read", WorkloadError):
        return _Reader(path).read(format_name)


class _Reader:
    """One reading of one file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mistakes = Mistakes(str(path), "row " if is_parquet(path) else "")
        self._notes: list[str] = []
        self._ids: set[str] = set()

    def read(self, format_name: str | None) -> TraceTable:
        table = open_table(self._path, self._mistakes)
        found = detect(table.names, format_name, table.header_line, self._mistakes) if table else None
        if table is None or found is None:
            raise self._mistakes.error()
        parts = list(self._chunks(table, found))
        if not parts and not self._mistakes:
            self._mistakes.add(0, 0, "got no requests; allowed: at least one")
        if self._mistakes:
            raise self._mistakes.error()
        columns: Columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        kept = {*found.required, *EXTRAS}
        columns = {name: column for name, column in columns.items() if name in kept or _is_used(column)}
        columns["number"] = np.arange(len(columns["arrival_s"]))
        if found.notes_unused:
            self._note_unused_columns(table, found)
        if found.drops_failures:
            columns = self._without_failures(columns)
        columns = self._sorted(columns)
        if found.has_absolute_clock:
            columns["arrival_s"] = columns["arrival_s"] - columns["arrival_s"][0]
        if found.ticks_per_s > 1:
            columns["arrival_s"] = columns["arrival_s"] / found.ticks_per_s
        extras = {told: columns.pop(name) for name, (_, told) in EXTRAS.items() if name in columns}
        return TraceTable(
            **columns, notes=tuple(self._notes), unit_may_slip=found.unit_may_slip, extras=extras
        )

    def _chunks(self, table: Table, found: Format) -> Iterator[Columns]:
        wanted = dict(found.required)
        for name, column in found.optional.items():
            if column.name in table.names or not table.has_fixed_columns:
                wanted[name] = column
        num_before = 0
        for chunk in table.chunks([column.name for column in wanted.values()]):
            if not chunk.lines:
                continue
            parsed = {name: column.kind.parse(chunk.columns[column.name]) for name, column in wanted.items()}
            columns = {name: values for name, (values, _) in parsed.items()}
            is_failure = columns["num_output_tokens"] == 0
            for order, (name, column) in enumerate(wanted.items()):
                for row, got in parsed[name][1].items():
                    if not (found.drops_failures and name == "num_prompt_tokens" and is_failure[row]):
                        text = f"{column.name}: got {got}; allowed: {column.kind.allowed}"
                        self._mistakes.add(chunk.lines[row], order, text)
            if "contents" in columns:
                wrong_lengths = parsed["num_prompt_tokens"][1]
                self._check_prompts(chunk, columns, wrong_lengths, len(wanted))
            if "request_id" in columns:
                ids = [each or f"r{row}" for row, each in enumerate(columns["request_id"], num_before)]
                columns["request_id"] = np.array(ids, dtype=np.object_)
                self._check_ids(chunk, ids, list(wanted).index("request_id"))
            yield columns
            num_before += len(chunk.lines)

    def _check_prompts(self, chunk: TableChunk, columns: Columns, told: Container[int], order: int) -> None:
        """Whether segments add up to the prompt and ids don't exceed it, but for the rows `told` already."""
        lengths = columns["num_prompt_tokens"].tolist()
        for row, (content, length) in enumerate(zip(columns["contents"], lengths, strict=True)):
            text = None if content is None or row in told else _misfit(content, length)
            if text is not None:
                self._mistakes.add(chunk.lines[row], order, text)

    def _check_ids(self, chunk: TableChunk, ids: list[str], order: int) -> None:
        for row, request_id in enumerate(ids):
            if request_id in self._ids:
                text = f"request_id: got {request_id} again; allowed: each id once"
                self._mistakes.add(chunk.lines[row], order, text)
            self._ids.add(request_id)

    def _without_failures(self, columns: Columns) -> Columns:
        kept = columns["num_output_tokens"] > 0
        num_failed = int((~kept).sum())
        if num_failed == len(kept):
            raise WorkloadError(
                f"{self._path}: got {num_failed:,} failed requests alone; allowed: one answer or more"
            )
        if num_failed:
            self._note(f"failed requests left out (answers of 0 tokens): {num_failed:,}")
        return {name: column[kept] for name, column in columns.items()}

    def _sorted(self, columns: Columns) -> Columns:
        num_early = int((np.diff(columns["arrival_s"]) < 0).sum())
        if not num_early:
            return columns
        order = np.argsort(columns["arrival_s"], kind="stable")
        self._note(f"{num_early:,} of {len(order):,} requests stood after a later one; sorted")
        return {name: column[order] for name, column in columns.items()}

    def _note_unused_columns(self, table: Table, found: Format) -> None:
        known = [column.name for column in (found.required | found.optional).values()]
        for name in table.names:
            if name not in known:
                self._note(f"column '{name}' is not used{did_you_mean(name, known)}")

    def _note(self, text: str) -> None:
        self._notes.append(f"{self._path.name}: {text}")


def _misfit(content: Any, num_prompt_tokens: int) -> str | None:
    """What is wrong with a prompt's segments or block ids beside its length, if anything is."""
    if isinstance(content, np.ndarray):
        most = -(-num_prompt_tokens // MOONCAKE_BLOCK_TOKENS)
        told = f"at most {most:,} for {num_prompt_tokens:,} prompt tokens"
        return f"hash_ids: got {len(content):,} ids; allowed: {told}" if len(content) > most else None
    got = sum(num_tokens for _, num_tokens in content)
    if got == num_prompt_tokens:
        return None
    return f"prompt: got segments of {got:,} tokens; allowed: num_prompt_tokens, {num_prompt_tokens:,}"


def _is_used(column: NDArray[Any]) -> bool:
    """Whether any row has a value of its own in an optional column."""
    if column.dtype == np.object_:
        return any(value is not None for value in column)
    if column.dtype == np.float64:
        return not bool(np.isnan(column).all())
    return bool(column.any())


def _prompt(content: Any, num_prompt_tokens: int, number: int) -> Segments | None:
    """Block ids as segments: equal ids are equal tokens; what no id covers is unshared."""
    if not isinstance(content, np.ndarray):
        given: Segments | None = content
        return given
    segments = []
    left = num_prompt_tokens
    for block in content.tolist():
        segments.append((f"h:{block}", min(left, MOONCAKE_BLOCK_TOKENS)))
        left -= MOONCAKE_BLOCK_TOKENS
    if left > 0:
        segments.append((f"p:r{number}", left))
    return tuple(segments)
