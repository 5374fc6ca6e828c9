"""Small runs on the naive engine, and a cost model with host time."""

from __future__ import annotations

from typing import Any

from cbsim.cluster.engine.reference import ReferenceEngine

from cbsim.cluster.engine.recorder import Recorder, RunLog
from cbsim.cluster.router import RoundRobin
from cbsim.cluster.simpy_world import World
from cbsim.cost.cost_model import CostModel, StepShape
from cbsim.schedulers import SCHEDULERS, Scheduler
from cbsim.studies.run import collect
from cbsim.testing import Case


class HostedCost(CostModel):
    """Depends on all that a cost model may depend on, with host time of its own."""

    def __init__(self, step_s: float = 0.01, token_s: float = 0.001) -> None:
        self.fixed_s, self.token_s = step_s, token_s

    def step_s(self, shape: StepShape) -> float:
        pairs = sum(tokens * (context + tokens) for tokens, context in shape.chunks)
        context = shape.decode_context + shape.max_decode_context
        return (
            self.fixed_s
            + self.token_s * (shape.num_tokens + shape.num_finishing_chunks)
            + 0.00001 * (pairs + context)
            + self.added_s(shape.num_requests)
        )

    def added_s(self, num_requests: int) -> float:
        return 0.002 + 0.0005 * num_requests

    def host_s(self, step_s: Any, num_requests: Any, columns_of: Any) -> Any:
        return self.added_s(num_requests)


def run(kind: str | type[Scheduler], case: Case, cost: CostModel, stop_at_s: float | None = None) -> RunLog:
    """A case on the naive engine, with batches."""
    recorder = Recorder(with_batches=True)
    num_in_flight = 2 if case.settings.get("async_scheduling") else 1
    scheduler_class = SCHEDULERS.get(kind) if isinstance(kind, str) else kind
    engines = [
        ReferenceEngine(replica, case.make_scheduler(scheduler_class), cost, recorder, num_in_flight)
        for replica in range(case.num_replicas)
    ]
    world = World(case.make_workload(), engines, RoundRobin(), stop_at_s=stop_at_s)
    world.run()
    return collect(recorder, engines, world.end_s, is_closed_loop=case.concurrency is not None)
