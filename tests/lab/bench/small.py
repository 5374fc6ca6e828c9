"""A small study: its configuration, figures by hand, and processes that none are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from cbsim.base.units import MEGA
from cbsim.lab.bench.scaling import Axis, Scales, Study
from cbsim.lab.bench.study import Ledger, Row
from cbsim.lab.bench.work_timing import Machine, Measured, measure_scaled
from cbsim.studies.experiment import Experiment
from cbsim.studies.worker_pool import WorkerLost

GENERATOR = {
    "type": "synthetic",
    "num_requests": 7,
    "arrivals": {"type": "poisson", "rate_per_s": 2.0},
    "prompt_tokens": {"type": "fixed", "value": 100},
    "output_tokens": {"type": "fixed", "value": 20},
}
TIMED = {key: value for key, value in GENERATOR.items() if key != "num_requests"} | {"duration_s": 5.0}
TRACE = "arrived_at,num_prefill_tokens,num_decode_tokens\n" + "".join(f"{i},100,5\n" for i in range(9))
SMALL = Scales(requests=(5, 30, 50), running=(2, 4), replicas=(1, 3))
MEASURED = Measured(
    num_requests=1000,
    num_steps=5000,
    cpu_s=0.05,
    peak_bytes=120 * MEGA,
    mean_running=6.5,
    bare_simpy_s=0.01,
)


def experiment(workload: dict[str, Any], **sections: Any) -> Experiment:
    return Experiment.from_mapping(
        {
            "name": "mine",
            "workload": workload,
            "scheduler": {"type": "vllm"},
            "cost_model": {"type": "constant", "step_s": 0.01},
            "kv_cache": {"num_blocks": 10_000},
            **sections,
        }
    )


class Bench:
    """Stands in for processes: knows what was measured, and may fail or be stopped."""

    def __init__(self, stop_after: int = 99, fails: tuple[int, ...] = ()) -> None:
        self.measured: list[int] = []
        self.stop_after = stop_after
        self.fails = fails

    def __call__(self, function: Any, settings: dict[str, Any], small: dict[str, Any]) -> Measured:
        assert function is measure_scaled
        num_requests = settings["workload"]["num_requests"]
        if len(self.measured) == self.stop_after:
            raise KeyboardInterrupt
        self.measured.append(num_requests)
        if num_requests in self.fails[1:]:
            raise MemoryError("no more")
        if num_requests in self.fails:
            raise WorkerLost("its process ended without an answer (out of memory?)")
        return replace(MEASURED, num_requests=num_requests)


def open_ledger(folder: Path) -> Ledger:
    return Ledger(folder, replace(Machine.here(), load=0.0))


def row(value: int, axis: Axis = Axis.REQUESTS, **figures: Any) -> Row:
    point = Study(experiment(GENERATOR), Scales((value,), (), ())).points[0]
    return Row(replace(point, axis=axis, value=value), replace(MEASURED, **figures))
