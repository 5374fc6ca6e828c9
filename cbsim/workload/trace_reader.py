"""TraceTable: all requests of a trace file, every value checked, every mistake told, arrivals in order."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbsim.base.errors import WorkloadError, refusals
from cbsim.base.registry import did_you_mean
from cbsim.workload.formats import EXTRAS, TIME_UNITS, Format, detect, unit_since_1970
from cbsim.workload.prompts import PromptRow, check_segments, find_block_size, segments_of
from cbsim.workload.request import BATCH_SIZE, IntColumn, ObjectColumn, RequestBatch, Segments
from cbsim.workload.table import Mistakes, Table, TableChunk, is_parquet, open_table
from cbsim.workload.values import INSTANT, SEGMENTS

Columns = dict[str, Any]
"""Arrays by their names in `TraceTable`; arrivals are in the file's own ticks."""


@dataclass(frozen=True, slots=True)
class TraceTable(RequestBatch):
    """A trace in memory, as one batch whose prompts are still as the file gave them."""

    contents: ObjectColumn | None = None
    """Prompts as segments, or as `PromptIds`; None where a row has neither."""
    block_tokens: int = 512
    """Prompt tokens that one block id stands for."""
    notes: tuple[str, ...] = ()
    """Sentences on lines left out, sorting done and columns not used."""
    unit_may_slip: bool = False
    """Whether arrivals are in seconds only if whoever wrote the file meant so."""
    extras: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """Columns of `formats.EXTRAS`, by the request's field in the core."""
    prompts_grow: bool = False
    """Whether the prompt of a turn counts only what is new in it."""

    def waiting(self, is_asked: bool | None) -> TraceTable:
        """The requests, turns of a session waiting for the answer before them: those with a delay, or all.

        `is_asked` is the user's `wait_for_answers`. NaN in `delay_s` is a turn that comes at its own time.
        """
        delay_s, before = self.delay_s, self.turns_before
        if is_asked is False or (delay_s is None and not is_asked):
            return replace(self, delay_s=None)
        if delay_s is None:
            delay_s = np.full(len(self), np.nan)
        waits = (before >= 0) & (bool(is_asked) | ~np.isnan(delay_s))
        follows = np.where(waits, before, -1)
        return replace(self, follows=follows, delay_s=np.where(waits, np.nan_to_num(delay_s), 0.0))

    @property
    def turns_before(self) -> IntColumn:
        """The row of the turn before each request's in its session; -1 if there is none."""
        before = np.full(len(self), -1)
        if self.session_id is None:
            return before
        last: dict[str, int] = {}
        for row, session in enumerate(self.session_id.tolist()):
            if session is not None:
                before[row] = last.get(session, -1)
                last[session] = row
        return before

    def grown(self) -> TraceTable:
        """The requests with whole prompts: the turn before, its answer, and what each adds itself."""
        before, names, lengths = self.turns_before.tolist(), self.names(), self.num_prompt_tokens.copy()
        answers = self.num_output_tokens.tolist()
        contents = [None] * len(self) if self.contents is None else self.contents.tolist()
        whole: list[Segments | None] = []
        for row, place in enumerate(before):
            added = segments_of(contents[row], int(lengths[row]), names[row], self.block_tokens)
            added = added or ((f"p:{names[row]}", int(lengths[row])),)
            if place >= 0:
                added = (*(whole[place] or ()), (f"o:{names[place]}", answers[place]), *added)
                lengths[row] = sum(num_tokens for _, num_tokens in added)
            whole.append(added)
        made = np.empty(len(self), dtype=np.object_)
        made[:] = whole
        return replace(self, contents=made, num_prompt_tokens=lengths)

    def batches(self, size: int = BATCH_SIZE) -> Iterator[RequestBatch]:
        """The requests in order of arrival, `size` at a time."""
        for start in range(0, len(self), size):
            batch = self.part(start, start + size)
            if self.contents is not None:
                contents = self.contents[start : start + size].tolist()
                names = [f"r{number}" for number in batch.number.tolist()]
                rows = zip(contents, batch.num_prompt_tokens.tolist(), names, strict=True)
                batch = replace(batch, prompt=[segments_of(*row, self.block_tokens) for row in rows])
            if self.extras:
                columns_of = [column[start : start + size].tolist() for column in self.extras.values()]
                given = [dict(zip(self.extras, row, strict=True)) for row in zip(*columns_of, strict=True)]
                # A list that a request does not bring is none.
                batch = replace(
                    batch, extra=[{k: v for k, v in row.items() if v is not None} for row in given]
                )
            yield batch


@dataclass(frozen=True, slots=True)
class Reading:
    """What a user says of a trace file; what is `None` is told by its columns, or by their values."""

    format_name: str | None = None
    time_unit: str | None = None
    """A key of `formats.TIME_UNITS`: of the arrivals, where they are numbers."""
    block_tokens: int | None = None
    """Prompt tokens that a block id stands for."""


def read_trace(path: Path, reading: Reading | None = None) -> TraceTable:
    """Reads a trace file of any format.

    Raises `WorkloadError` with a line for each mistake: `file:line: column: got X; allowed: Y`.
    """
    with refusals(path, "read", WorkloadError):
        state = path.stat()
        return _read(path, reading or Reading(), path.resolve(), state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=1)
def _read(path: Path, reading: Reading, *state: object) -> TraceTable:
    """Studies run many points on one trace, which is read once as long as its `state` is the same."""
    table = _Reader(path, reading).read()
    for each in fields(table):
        if isinstance(column := getattr(table, each.name), np.ndarray):
            column.setflags(write=False)  # All who ask for the file share it.
    return table


class _Reader:
    """One reading of one file."""

    def __init__(self, path: Path, reading: Reading) -> None:
        self._path = path
        self._reading = reading
        self._mistakes = Mistakes(str(path), "row " if is_parquet(path) else "")
        self._notes: list[str] = []
        self._ids: set[str] = set()
        self._lines: list[int] = []
        """Of rows that may have block ids."""
        self._num_failed = 0
        self._sessions: set[str] = set()
        """Those of rows that were read."""
        self._has_times = True

    def read(self) -> TraceTable:
        table = open_table(self._path, self._mistakes)
        wanted = self._reading.format_name
        found = detect(table.names, wanted, table.header_line, self._mistakes) if table else None
        if table is None or found is None:
            raise self._mistakes.error()
        if found.written_by:
            self._note(f"read as {found.written_by}")
        for note in table.notes:
            self._note(note)
        parts = list(self._chunks(table.without(found.failed, self._count_failed), found))
        if not parts and not self._mistakes:
            if self._num_failed:
                self._mistakes.add(0, 0, _only_failed(self._num_failed))
            else:
                self._mistakes.add(0, 0, "got no requests; allowed: at least one")
        block_tokens = found.block_tokens
        if "contents" in found.optional and found.optional["contents"].kind is not SEGMENTS:
            block_tokens = self._find_block(parts, found)
        if self._mistakes:
            raise self._mistakes.error()
        columns: Columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        kept = {*found.required, *EXTRAS}
        columns = {name: column for name, column in columns.items() if name in kept or _is_used(column)}
        columns["number"] = np.arange(len(columns["arrival_s"]))
        if "delay_s" in columns:
            columns = self._with_turns(columns, found)
        if found.notes_unused:
            self._note_unused_columns(table, found)
        if found.drops_failures:
            columns = self._without_failures(columns)
        if self._num_failed:
            how = "marked so, or answers of 0 tokens" if found.failed else "answers of 0 tokens"
            self._note(f"failed requests left out ({how}): {self._num_failed:,}")
        columns = self._sorted(columns)
        unit = self._reading.time_unit
        if unit is None and found.name == "log" and (unit := unit_since_1970(columns["arrival_s"][0])):
            self._note(f"{found.arrival.name} is in {unit} since 1970, by its size; time_unit sets it")
        if unit is None and found.name == "mooncake":
            self._note_fractions(columns["arrival_s"], found)
        if found.has_absolute_clock:
            columns["arrival_s"] = columns["arrival_s"] - columns["arrival_s"][0]
        ticks_per_s = found.ticks_per_s
        if unit is not None:
            if found.arrival.kind is INSTANT:
                told = f"got {unit}, but {found.arrival.name} holds dates; allowed: null"
                raise WorkloadError(f"{self._path}: time_unit: {told}")
            ticks_per_s = TIME_UNITS[unit]
        if ticks_per_s > 1:
            columns["arrival_s"] = columns["arrival_s"] / ticks_per_s
        extras = {told: columns.pop(name) for name, (_, told) in EXTRAS.items() if name in columns}
        return TraceTable(
            **columns,
            notes=tuple(self._notes),
            unit_may_slip=found.unit_may_slip and self._reading.time_unit is None,
            extras=extras,
            block_tokens=block_tokens,
            prompts_grow=found.prompts_grow and "delay_s" in columns,
        )

    def _with_turns(self, columns: Columns, found: Format) -> Columns:
        """Turns without a time of their own stand where the one before them does, at the earliest."""
        arrival, delay_s = columns["arrival_s"], columns["delay_s"]
        last: dict[str, float] = {}
        for row, session in enumerate(columns["session_id"].tolist()):
            earliest = last.get(session, 0.0)
            arrival[row] = earliest if np.isnan(arrival[row]) else max(arrival[row], earliest)
            if session is not None:
                last[session] = arrival[row]
        columns["delay_s"] = delay_s / found.optional["delay_s"].ticks_per_s
        return columns

    def _check_turns(self, chunk: TableChunk, columns: Columns, found: Format, told: Container[int]) -> None:
        """Whether each request without a time of its own is a later turn, and each delay that of a turn.

        Times of the rows `told` are known to be wrong.
        """
        arrival, delay_s = columns["arrival_s"], columns["delay_s"]
        for row, session in enumerate(columns.get("session_id", np.full(len(arrival), None)).tolist()):
            is_later = session in self._sessions
            if np.isnan(arrival[row]) and not is_later and row not in told:
                text = f"{found.arrival.kind.allowed}, but for later turns of a session"
                self._mistakes.add(chunk.lines[row], 0, f"{found.arrival.name}: got nothing; allowed: {text}")
            if session is None and not np.isnan(delay_s[row]):
                name = found.optional["delay_s"].name
                text = f"{name}: got {delay_s[row]:g}; allowed: in a turn of a session (session_id)"
                self._mistakes.add(chunk.lines[row], len(found.required), text)
            if session is not None:
                self._sessions.add(session)

    def _chunks(self, table: Table, found: Format) -> Iterator[Columns]:
        wanted = dict(found.required)
        for name, column in found.optional.items():
            if column.name in table.names or not table.has_fixed_columns:
                wanted[name] = column
        self._has_times = found.arrival.name in found.told_by or found.arrival.name in table.names
        if not self._has_times:
            self._note(
                f"it has no times: all {'sessions' if 'session_id' in wanted else 'requests'} begin at 0"
            )
            del wanted["arrival_s"]
        elif "delay_s" in wanted and "session_id" in wanted and found.arrival.kind.dtype is np.float64:
            wanted["arrival_s"] = found.arrival._replace(kind=replace(found.arrival.kind, absent=np.nan))
        num_before = 0
        for chunk in table.chunks([column.name for column in wanted.values()]):
            if not chunk.lines:
                continue
            parsed = {name: column.kind.parse(chunk.columns[column.name]) for name, column in wanted.items()}
            columns = {name: values for name, (values, _) in parsed.items()}
            columns.setdefault("arrival_s", np.zeros(len(chunk.lines)))
            is_failure = columns["num_output_tokens"] == 0
            for order, (name, column) in enumerate(wanted.items()):
                for row, got in parsed[name][1].items():
                    if not (found.drops_failures and name == "num_prompt_tokens" and is_failure[row]):
                        text = f"{column.name}: got {got}; allowed: {column.kind.allowed}"
                        self._mistakes.add(chunk.lines[row], order, text)
            if "delay_s" in columns:
                self._check_turns(chunk, columns, found, parsed["arrival_s"][1] if self._has_times else ())
            if "contents" in columns and wanted["contents"].kind is SEGMENTS:
                wrong_lengths = parsed["num_prompt_tokens"][1]
                self._check_segments(chunk, columns, wrong_lengths, len(wanted))
            elif "contents" in columns:
                wrong = parsed["num_prompt_tokens"][1]
                columns["contents"][list(wrong)] = None
                self._lines += chunk.lines
            if "request_id" in columns:
                ids = [each or f"r{row}" for row, each in enumerate(columns["request_id"], num_before)]
                columns["request_id"] = np.array(ids, dtype=np.object_)
                self._check_ids(chunk, ids, list(wanted).index("request_id"))
            yield columns
            num_before += len(chunk.lines)

    def _check_segments(self, chunk: TableChunk, columns: Columns, told: Container[int], order: int) -> None:
        """Whether segments add up to the prompt, but for the rows `told` already."""
        lengths = columns["num_prompt_tokens"].tolist()
        for row, (content, length) in enumerate(zip(columns["contents"], lengths, strict=True)):
            if row not in told:
                check_segments(PromptRow(chunk.lines[row], content, length), self._mistakes, order)

    def _find_block(self, parts: list[Columns], found: Format) -> int:
        """Prompt tokens that a block id stands for; adds a mistake for each row that has too many ids."""
        pairs = (
            pair
            for part in parts
            if "contents" in part
            for pair in zip(part["contents"], part["num_prompt_tokens"].tolist(), strict=True)
        )
        rows = (PromptRow(line, *pair) for line, pair in zip(self._lines, pairs, strict=False))
        name = found.optional["contents"].name
        size = find_block_size(
            rows,
            name,
            self._mistakes,
            usual=found.block_tokens,
            given=self._reading.block_tokens,
            order=len(found.required),
        )
        for note in size.note(name):
            self._note(note)
        return size.num_tokens

    def _check_ids(self, chunk: TableChunk, ids: list[str], order: int) -> None:
        for row, request_id in enumerate(ids):
            if request_id in self._ids:
                text = f"request_id: got {request_id} again; allowed: each id once"
                self._mistakes.add(chunk.lines[row], order, text)
            self._ids.add(request_id)

    def _count_failed(self, number: int) -> None:
        self._num_failed += number

    def _without_failures(self, columns: Columns) -> Columns:
        kept = columns["num_output_tokens"] > 0
        self._num_failed += int((~kept).sum())
        if not kept.any():
            raise WorkloadError(f"{self._path}: {_only_failed(self._num_failed)}")
        return {name: column[kept] for name, column in columns.items()}

    def _sorted(self, columns: Columns) -> Columns:
        num_early = int((np.diff(columns["arrival_s"]) < 0).sum())
        if not num_early:
            return columns
        order = np.argsort(columns["arrival_s"], kind="stable")
        self._note(f"{num_early:,} of {len(order):,} requests stood after a later one; sorted")
        return {name: column[order] for name, column in columns.items()}

    def _note_fractions(self, arrivals: NDArray[Any], found: Format) -> None:
        """Of arrivals in milliseconds that look like seconds: in fractions, and very many a second."""
        span_s = float(arrivals[-1] - arrivals[0]) / found.ticks_per_s
        has_fractions = bool((arrivals != np.rint(arrivals)).any())
        if len(arrivals) >= 20 and has_fractions and 0 < 50 * span_s < len(arrivals):
            self._note(
                f"{found.arrival.name} in milliseconds, as the format says, means "
                f"{len(arrivals) / span_s:,.0f} requests a second: if it is in seconds, set "
                "workload.time_unit=s"
            )

    def _note_unused_columns(self, table: Table, found: Format) -> None:
        known = [column.name for column in (found.required | found.optional).values()]
        for name in table.names:
            if name not in known:
                self._note(f"column '{name}' is not used{did_you_mean(name, known)}")

    def _note(self, text: str) -> None:
        self._notes.append(f"{self._path.name}: {text}")


def _only_failed(number: int) -> str:
    return f"got {number:,} failed requests alone; allowed: one answer or more"


def _is_used(column: NDArray[Any]) -> bool:
    """Whether any row has a value of its own in an optional column."""
    if column.dtype == np.object_:
        return any(value is not None for value in column)
    if column.dtype == np.float64:
        return not bool(np.isnan(column).all())
    return bool(column.any())
