"""The observer `log`: a readable line for each event, and for each step if wanted."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import SpooledTemporaryFile
from weakref import finalize

from pydantic import Field

from cbsim.base.units import MIB, format_seconds
from cbsim.config.section import ComponentConfig
from cbsim.observers.observer import Needs, ObservedRun, Observer
from cbsim.observers.views import StepView
from cbsim.workload.request import Request, RequestState

MAX_IN_MEMORY = 16 * MIB
"""Text beyond this lies on disk until it is written."""


class LogConfig(ComponentConfig):
    """A line an event or step, in the order of time."""

    events: bool = True
    """Tell what happens to requests."""
    steps: bool = False
    """Tell each step as it ends."""
    every: int = Field(default=1, ge=1)
    """Log every n-th step of each replica, from the first on."""
    file: str | None = None
    """A file in the run folder; null writes to standard error at once."""


class LogObserver(Observer):
    """Tells events and steps as readable lines, on standard error or in a file of the run folder."""

    Config = LogConfig
    config: LogConfig

    @property
    def needs(self) -> Needs:
        """See `Observer.needs`."""
        return Needs.STEPS if self.config.steps else Needs.REQUESTS

    def on_run_start(self, run: ObservedRun) -> None:
        """See `Observer.on_run_start`."""
        self._lines = SpooledTemporaryFile(MAX_IN_MEMORY, "w+", encoding="utf-8", newline="")  # noqa: SIM115
        """What goes to a file, once it is known that there is to be one."""
        finalize(self, self._lines.close)
        self._replica_width = len(str(len(run.schedulers) - 1))

    def on_request_arrived(self, now: float, request: Request, replica: int) -> None:
        """See `Observer.on_request_arrived`."""
        tokens = f"{request.num_prompt_tokens:,} prompt tokens, {request.num_output_tokens:,} to generate"
        what = "rejected" if request.state == RequestState.REJECTED else "arrived"
        self._tell(now, replica, what, request, tokens)

    def on_admitted(self, now: float, request: Request, replica: int) -> None:
        """See `Observer.on_admitted`."""
        waited = f"waited {format_seconds(now - request.waiting_since_s)}"
        if request.num_preemptions:
            self._tell(now, replica, "resumed", request, f"{waited}, {request.num_generated_tokens:,} made")
        else:
            self._tell(now, replica, "admitted", request, f"{waited}, {request.num_cached_tokens:,} cached")

    def on_first_token(self, now: float, request: Request, replica: int) -> None:
        """See `Observer.on_first_token`."""
        self._tell(now, replica, "first token", request, f"TTFT {format_seconds(now - request.arrival_s)}")

    def on_preempted(self, now: float, request: Request, replica: int) -> None:
        """See `Observer.on_preempted`."""
        lost = f"{request.num_lost_tokens:,} computed tokens lost, preemption {request.num_preemptions}"
        self._tell(now, replica, "preempted", request, lost)

    def on_finished(self, now: float, request: Request, replica: int) -> None:
        """See `Observer.on_finished`."""
        e2e = f"E2E {format_seconds(now - request.arrival_s)}, {request.num_output_tokens:,} tokens"
        self._tell(now, replica, "finished", request, e2e)

    def after_step(self, now: float, step: StepView, replica: int) -> None:
        """See `Observer.after_step`."""
        if step.number % self.config.every:
            return
        share = step.kv_blocks_used / step.kv_blocks_total
        parts = [
            format_seconds(step.duration_s),
            f"{step.num_prefill_tokens:,} prefill + {step.num_decodes:,} decode tokens",
            f"{step.num_running:,} running, {step.num_waiting:,} waiting",
            f"KV {share:.1%}",
        ]
        if step.preempted:
            parts.append(f"{len(step.preempted):,} preempted")
        if step.finished:
            parts.append(f"{len(step.finished):,} finished")
        self._write(now, replica, f"step {step.number}", "; ".join(parts))

    def files(self) -> Mapping[str, Callable[[Path], None]]:
        """See `Observer.files`."""
        return {} if self.config.file is None else {self.config.file: self._write_file}

    def text(self) -> str:
        """What was written, where it goes to a file."""
        self._lines.seek(0)
        return self._lines.read()

    def _write_file(self, path: Path) -> None:
        self._lines.seek(0)
        with path.open("w", encoding="utf-8", newline="") as target:
            shutil.copyfileobj(self._lines, target)

    def _tell(self, now: float, replica: int, what: str, request: Request, details: str) -> None:
        if self.config.events:
            self._write(now, replica, what, f"{request.request_id}: {details}")

    def _write(self, now: float, replica: int, what: str, details: str) -> None:
        line = f"{now:14.6f} s  replica {replica:{self._replica_width}}  {what:12} {details}\n"
        if self.config.file is None:
            sys.stderr.write(line)
        else:
            self._lines.write(line)
