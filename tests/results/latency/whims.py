"""A scheduler and a cost model that no reason guides, for what the shipped ones never do."""

from __future__ import annotations

from typing import Any

import numpy as np
from cbsim.schedulers.base import Resources, Scheduler, SchedulerConfig, StepPlan

from cbsim.cost.cost_model import CostModel, StepShape
from cbsim.workload.request import Request, RequestState

IDLE_S = 0.375
"""How long it does nothing when it has decided nothing."""


class WhimsicalConfig(SchedulerConfig):
    seed: int = 0


class WhimsicalScheduler(Scheduler):
    """Admits, passes over, preempts and idles at random; a pool that is too small never keeps it from it."""

    Config = WhimsicalConfig
    config: WhimsicalConfig

    def __init__(self, config: WhimsicalConfig, resources: Resources) -> None:
        super().__init__(config, resources)
        self._random = np.random.default_rng(config.seed)
        self._asked_at_s = 0.0

    def decide(self, step: StepPlan) -> None:
        self._asked_at_s = step.now
        for request in list(self.running):
            if self._happens(0.08):
                self.preempt(step, request)
        if self._happens(0.1):
            return
        for request in self.running:
            if self._happens(0.7):
                self._serve(step, request)
        while self._happens(0.6) and (head := self.waiting.head(step.now)) and head not in step.preempted:
            self.admit(step, head)
            if self._happens(0.8):
                self._serve(step, head)
        if step.slices and self._happens(0.3):
            step.transfer_s = 0.25

    def wake_at_s(self) -> float | None:
        is_idle = not (self.running or len(self.waiting))
        return None if is_idle else self._asked_at_s + IDLE_S

    def _serve(self, step: StepPlan, request: Request) -> None:
        num_wanted = self.num_wanted(request)
        if num_wanted and request.state is RequestState.RUNNING:
            self.schedule(step, request, int(self._random.integers(1, num_wanted + 1)))

    def _happens(self, chance: float) -> bool:
        return bool(self._random.random() < chance)


class WhimsicalCost(CostModel):
    """A number for each shape that has nothing to do with it, and host times that may exceed the step's."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def step_s(self, shape: StepShape) -> float:
        chunks = [size for chunk in shape.chunks for size in chunk]
        return float(np.random.default_rng([self.seed, *shape[1:], *chunks]).uniform(0.1, 1.0))

    def host_s(self, step_s: Any, num_requests: Any, columns_of: Any) -> Any:
        return (num_requests * 0.37 + self.seed * 0.11) % 0.6
