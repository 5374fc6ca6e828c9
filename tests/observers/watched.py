"""Small runs with observers, and an observer that takes down all it is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from cbsim.observers import Needs, ObservedRun, Observer, StepView
from cbsim.observers.audience import Audience
from cbsim.results.run_log import RunLog
from cbsim.studies.experiment import Experiment
from cbsim.studies.run import simulate
from cbsim.workload.request import Request
from tests.simulation import ListedWorkload

Row = dict[str, Any]


def row(name: str, arrival_s: float, num_prompt: int, num_output: int, **more: Any) -> Row:
    """A request's keyword arguments."""
    return {
        "request_id": name,
        "arrival_s": arrival_s,
        "num_prompt_tokens": num_prompt,
        "num_output_tokens": num_output,
        **more,
    }


def setting(kind: str = "vllm", num_blocks: int = 100, **further: Any) -> dict[str, Any]:
    """An experiment whose steps take a second and whose blocks hold four tokens."""
    return {
        "name": "watched",
        "model": "tiny",
        "workload": {"type": "trace", "path": "azure-like.csv"},
        "scheduler": {"type": kind, "async_scheduling": False},
        "kv_cache": {"num_blocks": num_blocks, "block_size": 4},
        "cost_model": {"type": "constant", "step_s": 1.0},
        **further,
    }


def watch(mapping: dict[str, Any], rows: Sequence[Row], *observers: Observer, **workload: Any) -> RunLog:
    """Run these requests under the experiment's other settings."""
    experiment = Experiment.from_mapping(mapping)
    listed = ListedWorkload(rows, **workload)
    return simulate(experiment, listed, audience=Audience(observers))[0]


class Notes(Observer):
    """`(time, hook, request or step number, replica)` of every call."""

    def on_run_start(self, run: ObservedRun) -> None:
        self.calls: list[tuple[float, str, Any, int]] = []
        self.run = run
        self.ended_at_s: list[float] = []

    def on_request_arrived(self, now: float, request: Request, replica: int) -> None:
        self.calls.append((now, "arrived", request.request_id, replica))

    def on_admitted(self, now: float, request: Request, replica: int) -> None:
        self.calls.append((now, "admitted", request.request_id, replica))

    def on_first_token(self, now: float, request: Request, replica: int) -> None:
        self.calls.append((now, "first token", request.request_id, replica))

    def on_preempted(self, now: float, request: Request, replica: int) -> None:
        self.calls.append((now, "preempted", request.request_id, replica))

    def on_finished(self, now: float, request: Request, replica: int) -> None:
        self.calls.append((now, "finished", request.request_id, replica))

    def on_run_end(self, now: float) -> None:
        self.ended_at_s.append(now)


class StepNotes(Notes):
    """The same with steps."""

    def before_step(self, now: float, step: StepView, replica: int) -> None:
        self.calls.append((now, "before", step.number, replica))

    def after_step(self, now: float, step: StepView, replica: int) -> None:
        self.calls.append((now, "after", step.number, replica))


class StateNotes(StepNotes):
    """The same, of one who looks at schedulers and pools too."""

    needs: ClassVar[Needs] = Needs.STATE  # type: ignore[assignment]
