"""Replay: an engine whose steps end when a record says, whatever they are predicted to cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from cbsim.cluster.engine.engine_interface import checked_s
from cbsim.cluster.engine.recorder import Recorder, RunLog
from cbsim.cluster.engine.reference import ReferenceEngine, Step
from cbsim.cluster.router import make_router
from cbsim.cluster.simpy_world import World
from cbsim.cost.cost_model import CostModel
from cbsim.schedulers.base import Scheduler, StepPlan
from cbsim.studies.experiment import Experiment
from cbsim.studies.run import collect, make_cost_model, make_scheduler
from cbsim.workload.request_source import Workload


class StepClock(Protocol):
    """Says when steps end."""

    def end_s(self, number: int, plan: StepPlan, start_s: float, predicted_s: float) -> float:
        """The end of a step that has just been decided, after `start_s`."""


class RecordedSteps:
    """The clock of a run that recorded every step's end, in order; steps beyond them take as predicted."""

    def __init__(self, ends_s: Sequence[float]) -> None:
        self._ends_s = ends_s

    def end_s(self, number: int, plan: StepPlan, start_s: float, predicted_s: float) -> float:
        """See `StepClock.end_s`."""
        recorded = self._ends_s[number] if number < len(self._ends_s) else start_s
        return recorded if recorded > start_s else start_s + predicted_s


class ReplayEngine(ReferenceEngine):
    """The naive engine on a clock that is not its cost model's."""

    def __init__(
        self, scheduler: Scheduler, cost: CostModel, recorder: Recorder, num_in_flight: int, clock: StepClock
    ) -> None:
        super().__init__(0, scheduler, cost, recorder, num_in_flight)
        self._clock = clock

    def call(self, now: float) -> None:
        """See `Engine.call`."""
        while len(self.under_way) < self.num_in_flight:
            plan = self.scheduler.plan(now)
            number = self._num_steps if plan.slices else -1
            self._record_decisions(plan, number)
            if not plan.slices:
                if plan.preempted and not self.under_way:
                    continue  # As in the simulated world: nothing else would make anybody ask again.
                return
            predicted_s = checked_s(self.cost.step_s(plan.priced_shape()) + plan.transfer_s, self.cost)
            start_s = self.under_way[-1].end_s if self.under_way else now
            end_s = self._clock.end_s(number, plan, start_s, predicted_s)
            self.under_way.append(Step(number, plan, start_s, end_s - start_s, end_s))
            self._num_steps += 1


def replay(experiment: Experiment, workload: Workload, clock: StepClock) -> RunLog:
    """What an experiment's scheduler decides if steps end by the clock; with its batches."""
    recorder = Recorder(with_batches=True)
    cost = make_cost_model(experiment)
    num_in_flight = 2 if experiment.scheduler.async_scheduling else 1
    engine = ReplayEngine(make_scheduler(experiment, cost), cost, recorder, num_in_flight, clock)
    world = World(workload, [engine], make_router(experiment.replicas.router, experiment.seed))
    world.run()
    return collect(recorder, [engine], world.end_s, is_closed_loop=workload.config.concurrency is not None)
