"""One setting, run by the naive engine and by the fast one, whose logs must be equal to the last bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cbsim.cluster.engine.engine_interface import Engine
from cbsim.cluster.engine.fast import FastEngine
from cbsim.cluster.engine.recorder import Recorder, RunLog
from cbsim.cluster.engine.reference import ReferenceEngine
from cbsim.cluster.router import make_router
from cbsim.cluster.simpy_world import World
from cbsim.cost.cost_model import CostModel, StepShape
from cbsim.schedulers import SCHEDULERS, Scheduler
from cbsim.studies.run import collect
from cbsim.testing import Case, differences
from cbsim.testing.case import TokenCost

ROUTERS = ("round_robin", "random", "least_outstanding", "least_kv", "prefix_affinity")
COSTS = ("exact", "irregular", "noisy")


class IrregularCost(CostModel):
    """Depends on all that a cost model may depend on, in steps that no float holds exactly."""

    def __init__(self) -> None:
        pass

    def step_s(self, shape: StepShape) -> float:
        chunks_s = sum(0.00002 * tokens * context for tokens, context in shape.chunks)
        decodes_s = 0.00001 * shape.decode_context + 0.0001 * shape.max_decode_context
        return 0.01 + 0.001 * shape.num_tokens + 0.0003 * shape.num_logits + decodes_s + chunks_s


class NoisyCost(IrregularCost):
    """The same with noise from a stream of its own, so that every step must be priced once and in order."""

    is_deterministic = False

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def step_s(self, shape: StepShape) -> float:
        return super().step_s(shape) * self._random.uniform(0.5, 1.5)


@dataclass(frozen=True)
class Setting:
    """A case of the conformance kit, and what else two engines might disagree on."""

    kind: str | type[Scheduler]
    """Name or class of the scheduler."""
    case: Case
    router: str = "round_robin"
    think_time_s: float = 0.0
    think_time_cv: float = 0.0
    stop_at_s: float | None = None
    cost: str = "exact"
    """`exact` is the case's own, whose steps are multiples of 1/8 s, as arrivals are."""

    @property
    def scheduler_class(self) -> type[Scheduler]:
        return SCHEDULERS.get(self.kind) if isinstance(self.kind, str) else self.kind

    def make_cost_model(self, replica: int) -> CostModel:
        match self.cost:
            case "irregular":
                return IrregularCost()
            case "noisy":
                return NoisyCost(replica)
        return TokenCost(self.case.step_s, self.case.token_s)

    def make_world(self, engine_class: type[Engine]) -> tuple[World, Recorder]:
        case = self.case
        recorder = Recorder()
        num_in_flight = 2 if case.settings.get("async_scheduling") else 1
        engines = [
            engine_class(
                replica,
                case.make_scheduler(self.scheduler_class),
                self.make_cost_model(replica),
                recorder,
                num_in_flight,
            )
            for replica in range(case.num_replicas)
        ]
        workload = case.make_workload()
        if case.concurrency and self.think_time_s:
            think = {"think_time_s": self.think_time_s, "think_time_cv": self.think_time_cv}
            workload.config = workload.config.model_copy(update=think)
        return World(workload, engines, make_router(self.router, 1), stop_at_s=self.stop_at_s), recorder

    def run(self, engine_class: type[Engine]) -> RunLog:
        """Run to the end; where nothing stopped it, all blocks must be back in order."""
        world, recorder = self.make_world(engine_class)
        world.run()
        log = collect(recorder, world.engines, world.end_s, is_closed_loop=self.case.concurrency is not None)
        for engine in world.engines:
            if self.stop_at_s is None:
                engine.scheduler.pool.check_integrity(engine.scheduler.running)
                assert engine.num_outstanding == 0
                assert engine.num_blocks_used == 0
        return log


def assert_engines_agree(setting: Setting) -> RunLog:
    """Run both engines and compare everything they recorded; returns the log."""
    log = setting.run(ReferenceEngine)
    assert differences(log, setting.run(FastEngine)) == [], repr(setting)
    return log


def request(
    number: int, arrival_s: float, num_prompt: int, num_output: int, **further: Any
) -> dict[str, Any]:
    """A request's keyword arguments."""
    return {
        "request_id": f"r{number}",
        "arrival_s": arrival_s,
        "num_prompt_tokens": num_prompt,
        "num_output_tokens": num_output,
        **further,
    }
