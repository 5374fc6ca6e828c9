"""The `trace` workload: requests replayed from a file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from cbsim.base.errors import WorkloadError
from cbsim.base.units import MS_PER_S
from cbsim.workload.lookup import find_trace
from cbsim.workload.request_batch import FloatColumn, RequestBatch
from cbsim.workload.request_source import Workload, WorkloadConfig
from cbsim.workload.trace_reader import TraceTable, read_trace
from cbsim.workload.trim import Trim

EPOCH_S = 1e9
"""Seconds from 1970 to 2001: no trace runs for so long, and every date since is later."""
_NUM_TOLD = 20
"""Fewer arrivals tell too little about their unit."""
_SLOW_GAP_S = 20.0
"""Mean seconds between arrivals at which a service would mostly idle; in milliseconds it is a busy one's."""


class TraceWorkload(Workload):
    """Replays a trace: Azure, Mooncake, BurstGPT, Vidur or cbsim's own; CSV, JSONL or Parquet; `.gz`, `.zst`.

    Where arrivals are dates (Azure), time, and with it `start_s` and `end_s`, counts in seconds from the
    earliest request of the file; elsewhere the file's own clock is kept.
    """

    class Config(WorkloadConfig):
        """Settings of a trace."""

        type: str = "trace"
        path: str
        """The file, from the experiment's folder, else the current one, else the bundled `workloads/`."""
        format: Literal["azure", "mooncake", "burstgpt", "vidur", "cbsim"] | None = None
        """Which format it has; null tells by its columns. Azure's arrivals are dates: time, and with it
        `start_s` and `end_s`, then counts in seconds from the earliest request."""

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
        self._trim = Trim(self.config)
        yield from self._trim.apply(table.batches())

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
        unit_may_slip = table.unit_may_slip and self.config.rate_scale == 1
        return clock_notes(self._path.name, table.arrival_s, start_s, unit_may_slip=unit_may_slip)

    @cached_property
    def _path(self) -> Path:
        return find_trace(self.config.path, self.folder)

    @cached_property
    def _table(self) -> TraceTable:
        return read_trace(self._path, self.config.format)

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
        unit, settings = "seconds", f"workload.start_s={math.floor(first_s)}"
        if first_s - start_s >= EPOCH_S * MS_PER_S:
            unit, settings = "milliseconds", f"{settings} and workload.rate_scale={MS_PER_S}"
        return [
            f"{file}: arrivals begin at {first_s:,.0f} s, as {unit} since 1970 would: to start there, set "
            f"{settings}"
        ]
    span_s = float(arrival_s[-1] - arrival_s[0])
    is_slow = len(arrival_s) >= _NUM_TOLD and span_s >= _SLOW_GAP_S * len(arrival_s)
    are_whole = bool((arrival_s == np.rint(arrival_s)).all())
    are_round = bool((arrival_s % 10 == 0).all())
    if unit_may_slip and is_slow and are_whole and not are_round:
        mean_gap_s = span_s / (len(arrival_s) - 1)
        return [
            f"{file}: arrivals are whole numbers, {mean_gap_s:.3g} s apart on average: if they are "
            f"milliseconds, workload.rate_scale={MS_PER_S} makes seconds of them"
        ]
    return []
