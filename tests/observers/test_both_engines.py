"""The fast engine tells observers what the naive one does, step by step and slice by slice."""

from __future__ import annotations

from typing import Any

import pytest

from cbsim.observers import StepView
from tests.observers.watched import StepNotes, row, setting, watch

ROWS = [
    row("a", 0.0, 9, 6),
    row("b", 0.0, 14, 12),
    row("c", 1.5, 5, 1),
    row("d", 2.0, 30, 9),
    row("e", 2.0, 3, 25),
    row("f", 11.0, 8, 8),
    row("g", 60.0, 6, 4),
]


class Shown(StepNotes):
    """What steps show, all of it, before or after they run."""

    def __init__(self, reads_slices: str) -> None:
        super().__init__()
        self.reads_slices = reads_slices
        self.views: list[Any] = []

    def before_step(self, now: float, step: StepView, replica: int) -> None:
        super().before_step(now, step, replica)
        self.note("before", step)

    def after_step(self, now: float, step: StepView, replica: int) -> None:
        super().after_step(now, step, replica)
        self.note("after", step)

    def note(self, when: str, step: StepView) -> None:
        slices = step.slices if when == self.reads_slices else ()
        self.views.append(
            (
                (when, step.replica, step.number, step.scheduled_at_s, step.start_s, step.duration_s),
                (step.num_prefill_tokens, step.num_decodes, step.num_new_tokens),
                (step.num_running, step.num_waiting, step.kv_blocks_used, step.kv_blocks_total),
                [request.request_id for request in step.preempted],
                [request.request_id for request in step.finished],
                [(part.request.request_id, *part[1:]) for part in slices],
            )
        )


@pytest.mark.parametrize("reads_slices", ["before", "after"])
@pytest.mark.parametrize("num_blocks", [14, 100])
@pytest.mark.parametrize(
    "scheduler",
    [
        {"type": "static", "max_num_seqs": 3},
        {"type": "continuous"},
        {"type": "continuous", "prefill_first": False, "async_scheduling": True},
        {"type": "chunked_prefill", "max_tokens_per_step": 16, "chunk_size": 8},
        {"type": "preemptive", "max_tokens_per_step": 16, "chunk_size": 8},
        {"type": "preemptive", "async_scheduling": True},
        {"type": "vllm", "async_scheduling": False, "max_tokens_per_step": 16},
        {"type": "vllm", "async_scheduling": True},
    ],
    ids=lambda scheduler: "-".join(str(value) for value in scheduler.values()),
)
def test_equal_hooks(scheduler: dict[str, Any], num_blocks: int, reads_slices: str) -> None:
    told = []
    for engine in ("fast", "reference"):
        shown = Shown(reads_slices)
        mapping = setting(scheduler["type"], num_blocks=num_blocks, engine=engine)
        mapping["scheduler"] = scheduler
        mapping["cost_model"] = {"type": "constant", "step_s": 0.75}
        watch(mapping, ROWS, shown)
        told.append(shown)
    fast, naive = told
    assert len(naive.views) > 40
    assert fast.calls == naive.calls
    assert fast.views == naive.views
