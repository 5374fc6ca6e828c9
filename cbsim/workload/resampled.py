"""The `resampled` workload: other draws of what a trace could have been, as many requests as wanted."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from pydantic import Field

from cbsim.workload.request_batch import IntColumn, RequestBatch
from cbsim.workload.request_source import MAX_REQUESTS
from cbsim.workload.streams import Streams
from cbsim.workload.trace import TraceWorkload
from cbsim.workload.trace_reader import TraceTable
from cbsim.workload.trim import Trim


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
        num_requests: int | None = Field(default=None, ge=1, le=MAX_REQUESTS)
        """How many requests to draw; null: as many as are drawn from."""
        block_requests: int | None = Field(default=None, ge=1)
        """Requests that stay together; null: a twentieth of those drawn from."""

    config: Config

    def batches(self) -> Iterator[RequestBatch]:
        """The file is read when the first batch is asked for; raises as `TraceWorkload.batches`."""
        if not self._num_in_window:
            yield from super().batches()
        self._trim = Trim(self.config.model_copy(update={"start_s": 0.0, "end_s": None, "limit": None}))
        yield from self._trim.apply(self._drawn().batches())

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
        starts = random.integers(0, num_source, math.ceil(num_drawn / self._block_size))
        rows: IntColumn = (starts[:, None] + np.arange(self._block_size)).ravel()[:num_drawn] % num_source
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
        )
