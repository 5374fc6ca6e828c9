"""The observer `csv`: events and steps as text tables."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from cbsim.base.spreadsheet import escaped
from cbsim.config.section import ComponentConfig
from cbsim.observers.gathered_columns import Columns, Table
from cbsim.observers.observer import Needs, ObservedRun, Observer
from cbsim.observers.views import StepView
from cbsim.workload.request import Request, RequestState

_REQUEST_COUNTS = ("num_prompt_tokens", "num_output_tokens", "num_cached_tokens", "num_preemptions")
_STEP_COUNTS = (
    *("num_prefill_tokens", "num_decode_tokens", "num_running", "num_waiting"),
    *("num_preempted", "num_finished", "kv_blocks_used", "kv_blocks_total"),
)


class CsvConfig(ComponentConfig):
    """Events and steps as CSV files, in order of time and at one instant by replica."""

    events: bool = True
    """Write `events.csv`: what happened to requests, first tokens included."""
    steps: bool = False
    """Write `steps.csv`: the steps that have ended, in order of their starts."""


class CsvObserver(Observer):
    """Writes events and steps as CSV files; reals have all their digits."""

    Config = CsvConfig
    config: CsvConfig

    @property
    def needs(self) -> Needs:
        """See `Observer.needs`."""
        return Needs.STEPS if self.config.steps else Needs.REQUESTS

    @property
    def events(self) -> Table:
        """One row an event, by column."""
        return self._events.table("time_s", "replica")

    @property
    def steps(self) -> Table:
        """One row a step, by column; names and values are those of `steps.parquet`."""
        return self._steps.table("start_s", "replica")

    def on_run_start(self, run: ObservedRun) -> None:
        """See `Observer.on_run_start`."""
        names = {"event": str, "request_id": str}
        self._events = Columns(time_s=float, replica=int, **names, **dict.fromkeys(_REQUEST_COUNTS, int))
        times = dict.fromkeys(("scheduled_at_s", "start_s", "duration_s"), float)
        self._steps = Columns(replica=int, step=int, **times, **dict.fromkeys(_STEP_COUNTS, int))

    def on_request_arrived(self, now: float, request: Request, replica: int) -> None:
        """See `Observer.on_request_arrived`."""
        self._add("arrived", now, request, replica)
        if request.state == RequestState.REJECTED:
            self._add("rejected", now, request, replica)

    def on_admitted(self, now: float, request: Request, replica: int) -> None:
        """See `Observer.on_admitted`."""
        self._add("resumed" if request.num_preemptions else "admitted", now, request, replica)

    def on_first_token(self, now: float, request: Request, replica: int) -> None:
        """See `Observer.on_first_token`."""
        self._add("first_token", now, request, replica)

    def on_preempted(self, now: float, request: Request, replica: int) -> None:
        """See `Observer.on_preempted`."""
        self._add("preempted", now, request, replica)

    def on_finished(self, now: float, request: Request, replica: int) -> None:
        """See `Observer.on_finished`."""
        self._add("finished", now, request, replica)

    def after_step(self, now: float, step: StepView, replica: int) -> None:
        """See `Observer.after_step`."""
        times = step.scheduled_at_s, step.start_s, step.duration_s
        computed = step.num_prefill_tokens, step.num_decodes, step.num_running, step.num_waiting
        left = len(step.preempted), len(step.finished), step.kv_blocks_used, step.kv_blocks_total
        self._steps.add(replica, step.number, *times, *computed, *left)

    def files(self) -> Mapping[str, Callable[[Path], None]]:
        """See `Observer.files`."""
        wanted = {"events.csv": self.config.events, "steps.csv": self.config.steps}
        return {name: partial(self._write, name) for name, is_wanted in wanted.items() if is_wanted}

    def _add(self, event: str, now: float, request: Request, replica: int) -> None:
        if self.config.events:
            counts = (getattr(request, name) for name in _REQUEST_COUNTS)
            self._events.add(now, replica, event, request.request_id, *counts)

    def _write(self, name: str, path: Path) -> None:
        table = self.events if name == "events.csv" else self.steps
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(table)
            writer.writerows(zip(*(map(escaped, column.tolist()) for column in table.values()), strict=True))
