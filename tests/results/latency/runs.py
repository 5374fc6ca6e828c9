"""Small runs, and a cost model with host time."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Any

from cbsim.cost.cost_model import CostModel, StepShape
from cbsim.results.run_log import RunLog
from cbsim.schedulers import SCHEDULERS, Scheduler
from cbsim.studies.simulation import simulate_core
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
    """A case, interpreted, with batches."""
    scheduler_class = SCHEDULERS.get(kind) if isinstance(kind, str) else kind
    setup = case.make_setup(scheduler_class, with_batches=True)
    log, *_ = simulate_core(
        replace(setup, cost=cost, until_s=inf if stop_at_s is None else stop_at_s), "interpreted"
    )
    return log
