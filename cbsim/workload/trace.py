"""The `trace` workload, requests replayed from a file, and the `resampled` one, other draws of it."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from cbsim.base.errors import WorkloadError
from cbsim.base.paths import data_folder, is_file, is_folder
from cbsim.base.trust import check_path
from cbsim.config.bounds import MAX_IN_A_RUN
from cbsim.config.yaml_text import Keys
from cbsim.workload.formats import EPOCH_S, TIME_UNITS, unit_since_1970
from cbsim.workload.request import FloatColumn, IntColumn, RequestBatch
from cbsim.workload.request_source import Trim, Workload, WorkloadConfig
from cbsim.workload.streams import Streams
from cbsim.workload.trace_reader import Reading, TraceTable, read_trace

_TRACE_TYPES = ("trace", "resampled", "empirical")
"""Parts of a workload whose `path` names a trace."""


def find_trace(path: str, folder: Path) -> Path:
    """The file that `path` names, looked up from `folder`, then the current one, then the bundled workloads.

    Raises `WorkloadError` naming the folders looked in and the nearest name there.
    """
    wanted = Path(os.path.expanduser(path))  # noqa: PTH111 - `Path` raises for a user who is none
    if wanted.is_absolute():
        candidates = [wanted]
    else:
        candidates = list(dict.fromkeys([folder / wanted, wanted, data_folder("workloads") / wanted]))
    for candidate in candidates:
        if is_file(candidate):
            check_path(candidate, folder, data_folder("workloads"), error=WorkloadError)
            return candidate
    for candidate in candidates:
        if is_folder(candidate):
            raise WorkloadError(f"{candidate}: got a folder; allowed: a trace file")
    folders = ", ".join(dict.fromkeys(str(candidate.parent.resolve()) for candidate in candidates))
    raise WorkloadError(f"{path}: no such file{_nearest(candidates)}; looked in {folders}")


def trace_paths(settings: Any, keys: Keys = ()) -> Iterator[tuple[Keys, str]]:
    """Each `path` of a trace below plain settings, which need not be right otherwise, and where it stands."""
    if isinstance(settings, list):
        for place, value in enumerate(settings):
            yield from trace_paths(value, (*keys, place))
    if not isinstance(settings, dict):
        return
    path = settings.get("path")
    if settings.get("type") in _TRACE_TYPES and isinstance(path, str):
        yield (*keys, "path"), path
    for key, value in settings.items():
        yield from trace_paths(value, (*keys, key))


def missing_traces(settings: Any, folder: Path) -> Iterator[tuple[Keys, str]]:
    """Where, below plain settings, a `path` names no trace, and why."""
    for keys, path in trace_paths(settings):
        try:
            find_trace(path, folder)
        except WorkloadError as error:
            yield from ((keys, problem) for problem in error.problems)


def _nearest(candidates: list[Path]) -> str:
    for candidate in candidates:
        beside = [each.name for each in candidate.parent.glob("*")]
        for near in difflib.get_close_matches(candidate.name, beside, n=1):
            return f"; did you mean '{near}'?"
    return ""


UNIT_NAMES = {"ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
_NUM_TOLD = 20
"""Fewer arrivals tell too little about their unit."""
_SLOW_GAP_S = 20.0
"""Mean seconds between arrivals at which a service would mostly idle; in milliseconds it is a busy one's."""


class TraceWorkload(Workload):
    """Replays a trace: a service's, a benchmark's results, a server's log or cbsim's own.

    Where arrivals are dates (Azure), time, and with it `start_s` and `end_s`, counts in seconds from the
    earliest request of the file; elsewhere the file's own clock is kept.
    """

    class Config(WorkloadConfig):
        """Settings of a trace."""

        type: str = "trace"
        path: str
        """The file, from the experiment's folder, else the current one, else the bundled `workloads/`."""
        format: (
            Literal[
                "azure", "mooncake", "servegen", "burstgpt", "vidur", "cbsim", "qwen", "llmservingsim",
                "bench_serving", "guidellm", "aiperf", "inference_perf", "otel", "log",
            ]
            | None
        ) = None  # fmt: skip
        """Which format it has; null tells by its columns. Azure's arrivals are dates: time, and with it
        `start_s` and `end_s`, then counts in seconds from the earliest request."""
        time_unit: Literal["s", "ms", "us", "ns"] | None = None
        """Unit of the arrivals; null: the format's own."""
        rate_per_s: float | None = Field(default=None, gt=0)
        """Mean arrivals a second: all times between arrivals (of the window, if one is set) are scaled alike,
        so that the trace comes at this rate. Null: at its own. `rate_scale` comes on top."""
        hash_block_tokens: int | None = Field(default=None, ge=1, le=2**20)
        """Prompt tokens that one of `hash_ids` stands for; null: found by how many there are, 512
        (Qwen-Bailian: 16) where that fits."""
        prompts_grow: bool | None = None
        """Whether the prompt of a session's later turn counts only what is new in it, so that all of it is
        the turn before, its answer, and that. Null: in Mooncake's form with delays, as AIPerf replays it."""

    config: Config
    _trim: Trim | None = None

    def batches(self) -> Iterator[RequestBatch]:
        """The file is read, and its mistakes told, when the first batch is asked for."""
        table = self._table
        if not self._num_in_window:
            end_s = "null" if self.config.end_s is None else f"{self.config.end_s:g}"
            raise WorkloadError(
                f"{self._path}: got no requests from start_s = {self.config.start_s:g} to end_s = {end_s}; "
                f"allowed: a window that meets {table.arrival_s[0]:g} to {table.arrival_s[-1]:g} seconds"
            )
        self._trim = Trim(self.config, self._rate_factor(self.own_arrivals()))
        yield from self._trim.apply(table.batches())

    def own_arrivals(self) -> FloatColumn:
        """The arrivals of window and limit on the file's clock, seconds."""
        first, _ = Trim(self.config).window(self._table.arrival_s)
        last = min(self.config.limit or self._num_in_window, self._num_in_window)
        return self._table.arrival_s[first : first + last]

    def _rate_factor(self, arrival_s: FloatColumn) -> float:
        """What brings arrivals to the rate asked for. Raises `WorkloadError` where they have none."""
        if self.config.rate_per_s is None:
            return 1.0
        span_s = float(arrival_s[-1] - arrival_s[0])
        if not span_s:
            raise WorkloadError(
                f"{self._path}: got {len(arrival_s):,} requests at one instant; allowed with rate_per_s: "
                "two or more instants"
            )
        return self.config.rate_per_s * span_s / (len(arrival_s) - 1)

    @property
    def uses_seed(self) -> bool:
        """Nothing of a recorded trace is drawn, unless a subclass makes other requests of it."""
        return type(self).batches is not TraceWorkload.batches

    def num_requests(self) -> int:
        """Exact; reads the file."""
        return min(self.config.limit or self._num_in_window, self._num_in_window)

    def inputs(self) -> list[Path]:
        """The trace file."""
        return [self._path]

    def notes(self) -> list[str]:
        """What reading left out or sorted, a clock that looks wrong, and what the caps cut last time."""
        return [*self._table.notes, *self._clock_notes(), *(self._trim.notes() if self._trim else [])]

    def _clock_notes(self) -> list[str]:
        table, start_s = self._table, self.config.start_s
        keeps_clock = self.config.rate_scale == 1 and self.config.rate_per_s is None
        unit_may_slip = table.unit_may_slip and keeps_clock
        return clock_notes(self._path.name, table.arrival_s, start_s, unit_may_slip=unit_may_slip)

    @cached_property
    def _path(self) -> Path:
        return find_trace(self.config.path, self.folder)

    @cached_property
    def _table(self) -> TraceTable:
        config = self.config
        table = read_trace(self._path, Reading(config.format, config.time_unit, config.hash_block_tokens))
        if config.wait_for_answers and table.session_id is None:
            raise WorkloadError(
                f"{self._path}: got no session_id, with wait_for_answers: true; allowed: one or more"
            )
        grows = table.prompts_grow if config.prompts_grow is None else config.prompts_grow
        return (table.grown() if grows else table).waiting(config.wait_for_answers)

    @cached_property
    def _num_in_window(self) -> int:
        window = Trim(self.config).window(self._table.arrival_s)
        return len(range(*window))


def clock_notes(file: str, arrival_s: FloatColumn, start_s: float, *, unit_may_slip: bool) -> list[str]:
    """What to think of a trace's arrivals, rising, as they are in the file; time starts at `start_s`.

    `unit_may_slip` says that the file's format doesn't fix their unit but by its word.
    """
    first_s = float(arrival_s[0])
    if first_s - start_s >= EPOCH_S:
        unit = unit_since_1970(first_s - start_s)
        ticks_per_s, named = (1, "seconds") if unit is None else (TIME_UNITS[unit], UNIT_NAMES[unit])
        settings = "" if unit is None else f"workload.time_unit={unit} and "
        settings += f"workload.start_s={math.floor(first_s / ticks_per_s)}"
        return [
            f"{file}: arrivals begin at {first_s:,.0f} s, as {named} since 1970 would: to start there, set "
            f"{settings}"
        ]
    span_s = float(arrival_s[-1] - arrival_s[0])
    is_slow = len(arrival_s) >= _NUM_TOLD and span_s >= _SLOW_GAP_S * len(arrival_s)
    are_whole = bool((arrival_s == np.rint(arrival_s)).all())
    are_round = bool((arrival_s % 10 == 0).all())
    if unit_may_slip and is_slow and are_whole and not are_round:
        mean_gap_s = span_s / (len(arrival_s) - 1)
        gaps_s = {unit: mean_gap_s / TIME_UNITS[unit] for unit in ("ms", "us", "ns")}
        unit = next((unit for unit, gap_s in gaps_s.items() if gap_s < _SLOW_GAP_S), "ns")
        return [
            f"{file}: arrivals are whole numbers, {mean_gap_s:.3g} s apart on average: if they are in "
            f"{unit}, workload.time_unit={unit} makes seconds of them"
        ]
    return []


class ResampledWorkload(TraceWorkload):
    """Draws blocks of neighbouring requests from a trace, so that each seed gives another such trace.

    The circular block bootstrap (Politis and Romano, 1992): blocks start anywhere in the trace and go round
    its end; every request brings along the time since the one before it. Bursts shorter than a block and what
    lengths have to do with each other are kept; trends longer than a block are not. Requests are named anew
    and sessions are dropped; prompts share what they share in the trace.
    """

    class Config(TraceWorkload.Config):
        """Settings of a resampled trace; window and limit choose what is drawn from."""

        type: str = "resampled"
        num_requests: int | None = Field(default=None, ge=1, le=MAX_IN_A_RUN)
        """How many requests to draw; null: as many as are drawn from."""
        block_requests: int | None = Field(default=None, ge=1)
        """Requests that stay together; null: a twentieth of those drawn from."""

        @model_validator(mode="after")
        def _has_no_sessions(self) -> Self:
            if self.wait_for_answers:
                raise ValueError(
                    "wait_for_answers: got true, but sessions are dropped; allowed: null or false"
                )
            return self

    config: Config

    def batches(self) -> Iterator[RequestBatch]:
        """The file is read when the first batch is asked for; raises as `TraceWorkload.batches`."""
        if not self._num_in_window:
            yield from super().batches()
        drawn = self._drawn()
        untrimmed = self.config.model_copy(update={"start_s": 0.0, "end_s": None, "limit": None})
        self._trim = Trim(untrimmed, self._rate_factor(drawn.arrival_s))
        yield from self._trim.apply(drawn.batches())

    def num_requests(self) -> int:
        """Exact; reads the file."""
        return self.config.num_requests or super().num_requests()

    def notes(self) -> list[str]:
        """What reading left out or sorted, how it was resampled, and what the caps cut."""
        told = f"requests drawn from {super().num_requests():,} of the trace in blocks of {self._block_size}"
        return [*self._table.notes, told, *(self._trim.notes() if self._trim else [])]

    @property
    def _block_size(self) -> int:
        return self.config.block_requests or math.ceil(super().num_requests() / 20)

    def _drawn(self) -> TraceTable:
        table = self._table
        first, _ = Trim(self.config).window(table.arrival_s)
        num_source, num_drawn = super().num_requests(), self.num_requests()
        arrival_s = table.arrival_s[first : first + num_source]
        mean_gap_s = (arrival_s[-1] - arrival_s[0]) / max(1, num_source - 1)
        gap_s = np.diff(arrival_s, prepend=arrival_s[0] - mean_gap_s)
        random = Streams(self.seed, "workload").child("blocks").generator()
        block_size = min(self._block_size, num_drawn)
        starts = random.integers(0, num_source, math.ceil(num_drawn / block_size))
        rows: IntColumn = (starts[:, None] + np.arange(block_size)).ravel()[:num_drawn] % num_source
        times = np.cumsum(gap_s[rows])
        rows += first
        chosen = ("priority", "user", "deadline_s", "contents")
        columns = {name: getattr(table, name) for name in chosen}
        return TraceTable(
            np.arange(num_drawn),
            times - times[0],
            table.num_prompt_tokens[rows],
            table.num_output_tokens[rows],
            **{name: column[rows] for name, column in columns.items() if column is not None},
            block_tokens=table.block_tokens,
        )
