"""Logs as servers write them, read into a `ServerLog`: JSONL, CSV, Parquet, or a run folder of cbsim."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cbsim.base.errors import WorkloadError
from cbsim.base.registry import did_you_mean
from cbsim.lab.validate.server_log import ServerLog
from cbsim.results.output import is_run_folder
from cbsim.results.result import load_run
from cbsim.results.run_log import Column

NAMES: dict[str, tuple[str, ...]] = {
    "request_id": ("request_id", "req_id", "id"),
    "prompt_tokens": (
        "num_prompt_tokens", "prompt_tokens", "input_tokens", "input_toks", "input_length", "prompt_len",
    ),
    "output_tokens": (
        "num_output_tokens", "output_tokens", "output_toks", "completion_tokens", "num_generation_tokens",
        "output_length", "output_len",
    ),
    "arrival": ("arrival_s", "arrival_time", "arrival_ts", "arrived_at"),
    "queued": ("queued_s", "queued_ts"),
    "scheduled": ("scheduled_s", "scheduled_ts", "first_scheduled_time"),
    "first_token": ("first_token_at_s", "first_token_ts", "first_token_time", "first_token_s"),
    "last_token": ("last_token_at_s", "finished_at_s", "last_token_ts", "finished_time", "last_token_s"),
    "token_times": ("token_times_s", "token_times"),
}  # fmt: skip
"""What a log says of a request, and the columns that say it: cbsim's own names, vLLM's and others'."""
REQUIRED = ("prompt_tokens", "output_tokens", "arrival", "first_token", "last_token")
MAX_PROBLEMS = 8


def read_server_log(path: Path, columns: Mapping[str, str] | None = None) -> ServerLog:
    """Read a log: JSONL, CSV, Parquet, or the run folder of a cbsim run, simulated or live.

    `columns` maps keys of `NAMES` to a log's own column names. Raises `WorkloadError` with a line for each
    mistake.
    """
    unknown = [name for name in columns or {} if name not in NAMES]
    if unknown:
        raise WorkloadError(*(f"--column: unknown '{name}'{did_you_mean(name, NAMES)}" for name in unknown))
    if path.is_dir() and is_run_folder(path):
        return _from_run_folder(path)
    return _Rows(path, columns or {}).to_log()


class _Rows:
    """A log's rows as they stand in the file, and the mistakes found in them."""

    def __init__(self, path: Path, columns: Mapping[str, str]) -> None:
        self._path, self._rows = path, _read_rows(path)
        self._problems: list[str] = []
        present = dict.fromkeys(name for _, row in self._rows for name in row)
        self._column = {
            what: columns.get(what) or next((name for name in names if name in present), None)
            for what, names in NAMES.items()
        }
        for what, name in self._column.items():
            if what in columns and name not in present:
                near = did_you_mean(str(name), present)
                self._problems.append(f"{path}: --column {what}={name}: no such column{near}")
            elif what in REQUIRED and name is None:
                self._problems.append(
                    f"{path}: no column for {what}: expected one of {', '.join(NAMES[what])}; "
                    f"name yours by --column {what}=NAME"
                )
        self._raise_problems()

    def to_log(self) -> ServerLog:
        """Columns checked, one clock, in order of arrival."""
        prompt, output = (self._numbers(f"{what}_tokens").astype(np.int64) for what in ("prompt", "output"))
        instants = ("arrival", "first_token", "last_token", "queued", "scheduled")
        times = {what: self._numbers(what) for what in instants if self._column[what]}
        self._raise_problems()
        notes = []
        sent, first, last = times["arrival"], times["first_token"], times["last_token"]
        if "queued" in times:
            delay = float((times["queued"] - sent).min())
            sent = sent + delay
            notes.append(f"arrivals moved by {delay:.6f} s onto the clock of {self._column['queued']}")
        taken = times.get("queued", sent)
        for row in np.flatnonzero((first < taken) | (last < first)).tolist():
            self._problem(row, "expected arrival <= first token <= last token")
        self._raise_problems()
        ids, tokens = self._ids(), self._token_times()
        self._raise_problems()
        start, order = float(sent.min()), np.argsort(sent, kind="stable")
        since_start = {what: (column - start)[order] for what, column in times.items()}
        return ServerLog(
            path=self._path,
            request_id=tuple(ids[row] for row in order.tolist()),
            num_prompt_tokens=prompt[order],
            num_output_tokens=output[order],
            sent_s=(sent - start)[order],
            queued_s=since_start.get("queued"),
            first_token_s=since_start["first_token"],
            last_token_s=since_start["last_token"],
            token_times_s=None if tokens is None else tuple(tokens[row] - start for row in order.tolist()),
            scheduled_s=since_start.get("scheduled"),
            notes=tuple(notes),
        )

    def _ids(self) -> list[str]:
        name = self._column["request_id"]
        if name is None:
            return [str(number) for number in range(len(self._rows))]
        ids = [str(values.get(name, "")) for _, values in self._rows]
        first_line: dict[str, int] = {}
        for row, (request_id, (line, _)) in enumerate(zip(ids, self._rows, strict=True)):
            if first_line.setdefault(request_id, line) != line:
                self._problem(row, f"{name} '{request_id}' stands in line {first_line[request_id]} too")
        return ids

    def _numbers(self, what: str) -> Column:
        """A column of counts, if they are of tokens, or of seconds."""
        name, is_count = str(self._column[what]), what.endswith("_tokens")
        allowed = "a whole number, 1 or more" if is_count else "seconds"
        values = np.ones(len(self._rows))
        for row, (_, fields) in enumerate(self._rows):
            got = fields.get(name)
            try:
                value = np.nan if isinstance(got, bool) else float(got)  # type: ignore[arg-type]
            except (TypeError, ValueError):
                value = np.nan
            if np.isfinite(value) and (not is_count or (value >= 1 and value % 1 == 0)):
                values[row] = value
            else:
                self._problem(row, f"{name}: expected {allowed}, got {got!r}")
        return values

    def _token_times(self) -> list[Column] | None:
        name, outputs = self._column["token_times"], str(self._column["output_tokens"])
        if name is None:
            return None
        times = []
        for row, (_, fields) in enumerate(self._rows):
            got, num_tokens = fields.get(name), int(float(fields[outputs]))
            if not isinstance(got, list) or len(got) != num_tokens:
                wanted = f"a list of {num_tokens} times, one for each output token"
                self._problem(row, f"{name}: expected {wanted}")
                continue
            times.append(np.array(got, dtype=np.float64))
            if (np.diff(times[-1]) <= 0).any():
                self._problem(row, f"{name}: times must rise")
        return times

    def _problem(self, row: int, text: str) -> None:
        self._problems.append(f"{self._path}:{self._rows[row][0]}: {text}")

    def _raise_problems(self) -> None:
        if self._problems:
            more = len(self._problems) - MAX_PROBLEMS
            rest = [f"{self._path}: and {more} more such mistakes"] if more > 0 else []
            raise WorkloadError(*self._problems[:MAX_PROBLEMS], *rest)


def _read_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Each row with its line number (of a Parquet file, its row number)."""
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            rows = list(enumerate(pq.read_table(path).to_pylist(), start=1))
        elif path.suffix == ".csv":
            with path.open(encoding="utf-8", newline="") as file:
                rows = list(enumerate(csv.DictReader(file), start=2))
        else:
            lines = path.read_text(encoding="utf-8").splitlines()
            rows = [(n, _json_row(path, n, line)) for n, line in enumerate(lines, start=1) if line.strip()]
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise WorkloadError(f"{path}: can't be read: {str(error).splitlines()[0]}") from error
    if not rows:
        raise WorkloadError(f"{path}: holds no requests")
    return rows


def _json_row(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise WorkloadError(f"{path}:{number}: expected a JSON object: {error.msg}") from error
    if not isinstance(row, dict):
        raise WorkloadError(f"{path}:{number}: expected a JSON object, got {line[:40]}")
    return row


def _from_run_folder(folder: Path) -> ServerLog:
    result = load_run(folder)
    finished = (result.requests["state"] == "finished").to_numpy()
    kept = result.requests[finished]
    if not len(kept):
        raise WorkloadError(f"{folder}: holds no finished requests")
    request_ids = tuple(kept["request_id"].astype(str))
    arrival = kept["arrival_s"].to_numpy(np.float64)
    emitted = result.events[result.events["event"] == "emitted"]
    by_request = emitted.groupby("request_id", observed=True)["time_s"]
    times = {str(name): np.sort(column.to_numpy()) for name, column in by_request}
    num_left = int((~finished).sum())
    return ServerLog(
        path=folder,
        request_id=request_ids,
        num_prompt_tokens=kept["num_prompt_tokens"].to_numpy(np.int64),
        num_output_tokens=kept["num_output_tokens"].to_numpy(np.int64),
        sent_s=arrival,
        queued_s=None,
        first_token_s=arrival + kept["ttft_s"].to_numpy(np.float64),
        last_token_s=kept["finished_at_s"].to_numpy(np.float64),
        token_times_s=tuple(times[request_id] for request_id in request_ids) if times else None,
        scheduled_s=arrival + kept["queue_s"].to_numpy(np.float64),
        notes=(f"{num_left} requests that did not finish are left out",) if num_left else (),
    )
