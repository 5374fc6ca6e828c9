"""ServerLog: when each request of a real server arrived, got its first token and its last."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cbsim.base.errors import WorkloadError, refusals
from cbsim.base.paths import is_file, is_folder
from cbsim.base.registry import did_you_mean
from cbsim.config.bounds import MAX_TOKENS
from cbsim.results.output import holds
from cbsim.results.result import load_run
from cbsim.results.run_log import Column
from cbsim.workload.formats import (
    LOG_NAMES,
    PROMPT_KINDS,
    TIME_UNITS,
    Flags,
    Format,
    log_failures,
    prompt_column,
    recognise,
    unit_since_1970,
)
from cbsim.workload.prompts import PromptRow, find_block_size, read_prompts, segments_of
from cbsim.workload.request import ObjectColumn, RequestBatch
from cbsim.workload.request_source import Workload, WorkloadConfig
from cbsim.workload.table import Mistakes, Table, is_parquet, open_table
from cbsim.workload.values import MAX_EXACT, TEXT, TIMES, Kind, number_kind, read_columns, whole

Arrivals = Literal["sent", "queued"]


@dataclass(frozen=True, slots=True)
class ServerLog:
    """The requests of a real run in order of arrival; seconds since the earliest arrival, on one clock.

    Where a log says when the engine took a request from its inbox (`queued`), arrivals may be on another
    clock: they are moved by the least of queued - arrival, as if one request had been taken at once.
    """

    path: Path
    request_id: tuple[str, ...]
    num_prompt_tokens: Column
    num_output_tokens: Column
    sent_s: Column
    """When the client sent it."""
    queued_s: Column | None
    """When the engine took it from its inbox."""
    first_token_s: Column
    last_token_s: Column
    token_times_s: tuple[Column, ...] | None = None
    """Of every token, where they were recorded."""
    itl_s: Column | None = None
    """Where some answers came in chunks of several tokens: times between the tokens of the others."""
    scheduled_s: Column | None = None
    """When the scheduler first gave it a share of a step."""
    prompts: ObjectColumn | None = None
    """What prompts hold, as `Segments`, None where a request's isn't known; None: nothing was recorded."""
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.request_id)

    def arrival_s(self, arrivals: Arrivals) -> Column:
        """When requests arrived: at the server, or in the engine's queue. Raises `WorkloadError`."""
        if arrivals == "sent":
            return self.sent_s
        if self.queued_s is None:
            raise WorkloadError(f"{self.path}: has no column queued_s or queued_ts; allowed: sent")
        return self.queued_s

    def with_prompts(self, path: Path, block_tokens: int | None = None) -> ServerLog:
        """The log with what its prompts hold, from a file (`read_prompts`). Raises `WorkloadError`."""
        found = read_prompts(path, self.request_id, self.num_prompt_tokens.tolist(), block_tokens)
        return replace(self, prompts=found.segments, notes=(*self.notes, *found.notes))

    def workload(self, arrivals: Arrivals) -> LoggedWorkload:
        """Its requests, to be simulated."""
        return LoggedWorkload(self, self.arrival_s(arrivals))

    def latencies(self, arrivals: Arrivals) -> dict[str, Column]:
        """`ttft_s`, `tpot_s`, `e2e_s` of each request, `itl_s` of all tokens where recorded; seconds."""
        arrival_s = self.arrival_s(arrivals)
        num_gaps = self.num_output_tokens - 1
        tpot_s = np.full(len(self), np.nan)
        np.divide(self.last_token_s - self.first_token_s, num_gaps, out=tpot_s, where=num_gaps > 0)
        latencies = {"ttft_s": self.first_token_s - arrival_s, "tpot_s": tpot_s}
        if self.token_times_s is not None:
            latencies["itl_s"] = np.concatenate([np.diff(times) for times in self.token_times_s])
        elif self.itl_s is not None:
            latencies["itl_s"] = self.itl_s
        return latencies | {"e2e_s": self.last_token_s - arrival_s}


class LoggedWorkload(Workload):
    """The requests of a log, arriving as they did."""

    Config = WorkloadConfig

    def __init__(self, log: ServerLog, arrival_s: Column) -> None:
        super().__init__(WorkloadConfig(type="log"), seed=0, folder=log.path.parent)
        self._log, self._arrival_s = log, arrival_s

    def batches(self) -> Iterator[RequestBatch]:
        """See `Workload.batches`: one of all requests."""
        log, order = self._log, np.argsort(self._arrival_s, kind="stable")
        num_prompt_tokens, num_output_tokens = log.num_prompt_tokens[order], log.num_output_tokens[order]
        ids = np.array(log.request_id, dtype=np.object_)[order]
        prompt = None if log.prompts is None else log.prompts[order].tolist()
        yield RequestBatch(
            order, self._arrival_s[order], num_prompt_tokens, num_output_tokens, ids, prompt=prompt
        )

    def num_requests(self) -> int:
        """Exact."""
        return len(self._log)

    def inputs(self) -> list[Path]:
        """The log."""
        return [self._log.path] if is_file(self._log.path) else []


REQUIRED = ("prompt_tokens", "output_tokens", "arrival", "first_token", "last_token")
Columns = dict[str, Any]
"""Columns of a log by keys of `LOG_NAMES`."""


def _rising(value: Any) -> Column:
    times: Column = TIMES.read(value)
    if not (np.diff(times) > 0).all():
        raise ValueError
    return times


INSTANT = number_kind("seconds", -MAX_EXACT, MAX_EXACT, np.float64)
KINDS = {
    "request_id": TEXT,
    "prompt_tokens": whole(1, MAX_TOKENS),
    "output_tokens": whole(1, MAX_TOKENS),
    "token_times": Kind("a list of rising seconds", _rising),
    **PROMPT_KINDS,
}
"""What may stand in a column; an `INSTANT` in every other."""


def read_server_log(
    path: Path, columns: Mapping[str, str] | None = None, block_tokens: int | None = None
) -> ServerLog:
    """Read a log: JSONL, CSV, Parquet, or the run folder of a cbsim run, simulated or live.

    `columns` maps keys of `LOG_NAMES` to a log's own column names; a log's own hash ids stand for
    `block_tokens` tokens each, if that is given. Raises `WorkloadError` with a line for each mistake.
    """
    unknown = [name for name in columns or {} if name not in LOG_NAMES]
    if unknown:
        raise WorkloadError(
            *(f"--column: unknown '{name}'{did_you_mean(name, LOG_NAMES)}" for name in unknown)
        )
    if is_folder(path) and holds(path, "run"):
        found, notes = _read_run_folder(path)
    else:
        with refusals(path, "read", WorkloadError):
            found, notes = _read_file(path, columns or {}, block_tokens)
    order, start = np.argsort(found["arrival"], kind="stable"), found["arrival"].min()
    ids, times = found.get("request_id", range(len(order))), found.get("token_times")
    times, itl_s, chunked = _tokens_of(times, found["output_tokens"], order)
    since_start = {what: (found[what] - start)[order] for what in found if what not in (*KINDS, "prompts")}
    return ServerLog(
        path=path,
        request_id=tuple(str(ids[row]) for row in order.tolist()),
        num_prompt_tokens=found["prompt_tokens"][order],
        num_output_tokens=found["output_tokens"][order],
        sent_s=since_start["arrival"],
        queued_s=since_start.get("queued"),
        first_token_s=since_start["first_token"],
        last_token_s=since_start["last_token"],
        token_times_s=None if times is None else tuple(each - start for each in times),
        itl_s=itl_s,
        scheduled_s=since_start.get("scheduled"),
        prompts=found["prompts"][order] if "prompts" in found else None,
        notes=(*notes, *chunked),
    )


def _tokens_of(
    times: Any, num_tokens: Column, order: Column
) -> tuple[list[Column] | None, Column | None, list[str]]:
    """Times of all tokens in order of arrival, if each is known; else the times between those that are."""
    if times is None:
        return None, None, []
    ordered = [(times[row], int(num_tokens[row])) for row in order.tolist()]
    whole_ones = [each for each, number in ordered if each is not None and len(each) == number]
    if len(whole_ones) == len(ordered):
        return whole_ones, None, []
    gaps = [np.diff(each) for each in whole_ones]
    note = (
        f"{len(ordered) - len(whole_ones):,} of {len(ordered):,} answers have times of chunks, not of each "
        f"token: {'ITL is of the others' if gaps else 'ITL is not compared'}"
    )
    return None, np.concatenate(gaps) if gaps else None, [note]


def _read_file(path: Path, given: Mapping[str, str], block_tokens: int | None) -> tuple[Columns, list[str]]:
    """A log's columns, every value checked, and what to know of them."""
    mistakes = Mistakes(str(path), "row " if is_parquet(path) else "")
    table = open_table(path, mistakes)
    benchmark = recognise(table.names) if table and not given else None
    if benchmark is not None and not benchmark.served:
        benchmark = None
    names: dict[str, str] = {}
    if table and benchmark is None:
        names = _names_of(table.names, given, mistakes)
    if table is None or mistakes:
        raise mistakes.error()
    if benchmark is not None:
        wanted, flags = _wanted_of(benchmark, table.names), benchmark.failed
        flags = flags | log_failures(benchmark.output_tokens)
    else:
        wanted = {what: (name, KINDS.get(what, INSTANT)) for what, name in names.items()}
        flags = log_failures(names["output_tokens"])
    columns, lines, num_failed = _read_served(table, wanted, flags, mistakes)
    notes = [*table.notes, *_find_prompts(columns, wanted, lines, mistakes, block_tokens)]
    if benchmark is not None:
        notes.insert(0, f"read as {benchmark.written_by}")
        columns = _as_log(columns, benchmark)
        names = {what: name for what, (name, _) in wanted.items() if what != "token_times"}
    else:
        notes += _to_seconds(columns, names)
    if num_failed:
        notes.append(f"failed requests left out: {num_failed:,}")
    for row, problem in _contradictions(columns, names, lines):
        mistakes.add(lines[row], 0, problem)
    if mistakes:
        raise mistakes.error()
    if "queued" not in columns:
        return columns, notes
    delay_s = float((columns["queued"] - columns["arrival"]).min())
    columns["arrival"] = columns["arrival"] + delay_s
    return columns, [*notes, f"arrivals moved by {delay_s:.6f} s onto the clock of {names['queued']}"]


def _read_served(
    table: Table, wanted: Mapping[str, tuple[str, Kind]], flags: Flags, mistakes: Mistakes
) -> tuple[Columns, list[int], int]:
    """The columns and lines of the requests that didn't fail, and how many did; raises what is wrong."""
    failed: list[int] = []
    columns, lines = read_columns(table.without(flags, failed.append), wanted, mistakes)
    num_failed = sum(failed)
    if not lines and not mistakes:
        told = f"holds {num_failed:,} failed requests alone" if num_failed else "holds no requests"
        mistakes.add(0, 0, told)
    if mistakes:
        raise mistakes.error()
    return columns, lines, num_failed


def _find_prompts(
    columns: Columns,
    wanted: Mapping[str, tuple[str, Kind]],
    lines: Sequence[int],
    mistakes: Mistakes,
    block_tokens: int | None,
) -> list[str]:
    """Turn a log's own ids of prompts into `prompts`; returns a note where the size of a block was found."""
    contents = {what: columns.pop(what) for what in PROMPT_KINDS if what in columns}
    for what, content in contents.items():
        lengths = columns["prompt_tokens"].tolist()
        rows = [PromptRow(*row) for row in zip(lines, content, lengths, strict=True)]
        name = wanted[what][0]
        size = find_block_size(rows, name, mistakes, given=block_tokens)
        segments = [
            segments_of(row.content, row.num_prompt_tokens, f"r{at}", size.num_tokens)
            for at, row in enumerate(rows)
        ]
        columns["prompts"] = np.full(len(rows), None, np.object_)
        columns["prompts"][:] = segments
        return size.note(name)
    return []


def _to_seconds(columns: Columns, names: Mapping[str, str]) -> list[str]:
    """Turn dates in milliseconds or microseconds into seconds; returns a note on each unit found."""
    found: dict[str, list[str]] = {}
    for what, values in columns.items():
        if what == "token_times":
            first = next((each[0] for each in values if each is not None and len(each)), 0.0)
        elif what in KINDS or what == "prompts":
            continue
        else:
            first = float(values.min())
        if unit := unit_since_1970(first):
            found.setdefault(unit, []).append(names[what])
            per_s = TIME_UNITS[unit]
            if what == "token_times":
                columns[what] = [None if each is None else each / per_s for each in values]
            else:
                columns[what] = values / per_s
    return [f"{', '.join(of)}: in {unit} since 1970, by their size" for unit, of in found.items()]


def _wanted_of(benchmark: Format, present: Sequence[str]) -> dict[str, tuple[str, Kind]]:
    """What to read of a benchmark's results that have the columns `present`."""
    required = benchmark.required
    wanted = {
        "arrival": required["arrival_s"],
        "prompt_tokens": required["num_prompt_tokens"],
        "output_tokens": required["num_output_tokens"],
        **benchmark.served,
    }
    if "request_id" in benchmark.optional:
        wanted["request_id"] = benchmark.optional["request_id"]
    if (prompts := prompt_column(present)) is not None:
        wanted[next(what for what, kind in PROMPT_KINDS.items() if kind is prompts.kind)] = prompts
    return {what: (column.name, column.kind) for what, column in wanted.items()}


def _as_log(columns: Columns, benchmark: Format) -> Columns:
    """A benchmark's columns as those of a log: instants in seconds since the first arrival."""
    start, ticks_per_s = columns["arrival"].min(), benchmark.ticks_per_s
    for what in ("arrival", "first_token", "last_token"):
        if what in columns:
            columns[what] = (columns[what] - start) / ticks_per_s
    arrival: Column = columns["arrival"]
    times: list[Column | None] | None = None
    if "token_times" in columns:
        recorded = columns["token_times"]
        times = [None if each is None else np.sort(each - start) / ticks_per_s for each in recorded]
    if "ttft" in columns:
        columns["first_token"] = arrival + columns.pop("ttft") / benchmark.served["ttft"].ticks_per_s
    if "gaps" in columns:
        unit = benchmark.served["gaps"].ticks_per_s
        gaps = [np.empty(0) if each is None else each / unit for each in columns.pop("gaps")]
        pairs = zip(columns["first_token"].tolist(), gaps, strict=True)
        times = [first + np.concatenate([[0.0], np.cumsum(each)]) for first, each in pairs]
    if times is not None:
        last_s: Column = columns.get("last_token", arrival)
        ends = zip(times, last_s.tolist(), strict=True)
        ends_s = [(each[0], each[-1]) if each is not None and len(each) else (end, end) for each, end in ends]
        first, last = np.array(ends_s).T
        columns.setdefault("first_token", first)
        columns.setdefault("last_token", last)
        columns["token_times"] = times
    return columns


def _names_of(present: Sequence[str], given: Mapping[str, str], mistakes: Mistakes) -> dict[str, str]:
    """The column for each key of `LOG_NAMES` that the log has one for."""
    names = {}
    for what, known in LOG_NAMES.items():
        name = given.get(what) or next((name for name in known if name in present), None)
        if name is None and what in REQUIRED:
            told = f"no column for {what}: expected one of {', '.join(known)}"
            mistakes.add(0, 0, f"{told}; name yours by --column {what}=NAME")
        elif name is not None and name not in present:
            mistakes.add(0, 0, f"--column {what}={name}: no such column{did_you_mean(name, present)}")
        elif name is not None:
            names[what] = name
    return names


def _contradictions(
    columns: Columns, names: Mapping[str, str], lines: Sequence[int]
) -> Iterator[tuple[int, str]]:
    """Rows, and how their values, each right by itself, contradict each other or another row's."""
    taken = columns.get("queued", columns["arrival"])
    first, last = columns["first_token"], columns["last_token"]
    for row in np.flatnonzero((first < taken) | (last < first)).tolist():
        yield row, "expected arrival <= first token <= last token"
    line_of: dict[str, int] = {}
    for row, request_id in enumerate(columns.get("request_id", ())):
        if (line := line_of.setdefault(request_id, lines[row])) != lines[row]:
            yield row, f"{names['request_id']} '{request_id}' stands in line {line} too"
    for row, times in enumerate(columns.get("token_times", ())):
        num_tokens = columns["output_tokens"][row]
        if times is not None and len(times) > num_tokens and "token_times" in names:
            wanted = f"a list of at most {num_tokens} times, one for each output token"
            yield row, f"{names['token_times']}: expected {wanted}"


def _read_run_folder(folder: Path) -> tuple[Columns, list[str]]:
    """The requests of a run that finished, and a note on the others."""
    result = load_run(folder)
    finished = (result.requests["state"] == "finished").to_numpy()
    kept = result.requests[finished]
    if not len(kept):
        raise WorkloadError(f"{folder}: holds no finished requests")
    queued = kept["arrival_s"].to_numpy(np.float64)
    front_end_s = float(result.config.get("front_end_s") or 0.0)
    arrival = queued - front_end_s
    columns = {
        **({"queued": queued} if front_end_s else {}),
        "request_id": kept["request_id"].astype(str).to_numpy(),
        "prompt_tokens": kept["num_prompt_tokens"].to_numpy(np.int64),
        "output_tokens": kept["num_output_tokens"].to_numpy(np.int64),
        "arrival": arrival,
        "first_token": arrival + kept["ttft_s"].to_numpy(np.float64),
        "last_token": kept["finished_at_s"].to_numpy(np.float64),
        "scheduled": queued + kept["queue_s"].to_numpy(np.float64),
    }
    emitted = result.events[result.events["event"] == "emitted"]
    by_request = emitted.groupby("request_id", observed=True)["time_s"]
    times = {str(name): np.sort(column.to_numpy()) for name, column in by_request}
    if times:
        if unknown := {*columns["request_id"]} - times.keys():
            raise WorkloadError(f"{folder}: events.parquet has no token of request {min(unknown)!r}")
        columns["token_times"] = [times[request_id] for request_id in columns["request_id"]]
    num_left = int((~finished).sum())
    return columns, [f"{num_left} requests that did not finish are left out"] if num_left else []
