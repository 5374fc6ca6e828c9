"""Observers of a live run hear what its record says."""

from __future__ import annotations

import math
from typing import Any

import pytest

pytest.importorskip("torch")

from cbsim.lab.live import run_live
from cbsim.observers import StepView
from cbsim.observers.csv_observer import CsvObserver
from cbsim.observers.memory_observer import MemoryObserver
from cbsim.observers.metrics_observer import MetricsObserver
from cbsim.studies.experiment import Experiment
from tests.observers.watched import StepNotes

SETTINGS: dict[str, Any] = {
    "model": "tiny",
    "workload": {
        "type": "synthetic",
        "num_requests": 6,
        "arrivals": {"type": "poisson", "rate_per_s": 200.0},
        "prompt_tokens": {"type": "fixed", "value": 9},
        "output_tokens": {"type": "fixed", "value": 4},
    },
    "kv_cache": {"num_blocks": 12, "block_size": 4},
}


class Lengths(StepNotes):
    """Takes down how long steps seem to be before they have run, and after."""

    def on_run_start(self, run: Any) -> None:
        super().on_run_start(run)
        self.before: list[float] = []
        self.after: list[float] = []

    def before_step(self, now: float, step: StepView, replica: int) -> None:
        super().before_step(now, step, replica)
        self.before.append(step.duration_s)

    def after_step(self, now: float, step: StepView, replica: int) -> None:
        super().after_step(now, step, replica)
        self.after.append(step.duration_s)


@pytest.mark.parametrize("is_async", [False, True])
def test_steps_and_requests_are_those_of_the_record(is_async: bool) -> None:
    scheduler = {"type": "vllm", "async_scheduling": is_async}
    experiment = Experiment.from_mapping(
        {**SETTINGS, "scheduler": scheduler, "observers": ["memory", {"type": "csv", "steps": True}]}
    )
    lengths = Lengths()
    result = run_live(experiment, observers=[lengths, MetricsObserver()])
    memory, csv, _, metrics = result.observers
    assert isinstance(csv, CsvObserver)
    assert isinstance(memory, MemoryObserver)
    assert isinstance(metrics, MetricsObserver)
    for name, column in csv.steps.items():
        assert column.tolist() == result.steps[name].tolist(), name
    for name, recorded in (("admitted", "admitted"), ("finished", "finished")):
        events = result.events[result.events["event"] == recorded]
        is_told = csv.events["event"] == name
        assert csv.events["request_id"][is_told].tolist() == events["request_id"].tolist()
        assert csv.events["time_s"][is_told].tolist() == events["time_s"].tolist()
    firsts = {call[2]: call[0] for call in lengths.calls if call[1] == "first token"}
    requests = result.requests
    for name, arrival_s, ttft_s in zip(
        requests["request_id"], requests["arrival_s"], requests["ttft_s"], strict=True
    ):
        assert firsts[name] - arrival_s == pytest.approx(ttft_s)
    assert all(map(math.isnan, lengths.before))
    assert lengths.after == result.steps["duration_s"].tolist()
    assert memory.blocks["kv_blocks_used"][-1] == 0
    assert metrics.metrics.to_plain()["generation_tokens_total"] == [24]
