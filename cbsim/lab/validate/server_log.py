"""ServerLog: when each request of a real server arrived, got its first token and its last."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from cbsim.base.errors import WorkloadError
from cbsim.results.run_log import Column
from cbsim.workload.request import RequestBatch
from cbsim.workload.request_source import Workload, WorkloadConfig

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
    scheduled_s: Column | None = None
    """When the scheduler first gave it a share of a step."""
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
        yield RequestBatch(order, self._arrival_s[order], num_prompt_tokens, num_output_tokens, ids)

    def num_requests(self) -> int:
        """Exact."""
        return len(self._log)

    def inputs(self) -> list[Path]:
        """The log."""
        return [self._log.path] if self._log.path.is_file() else []
