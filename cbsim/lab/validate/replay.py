"""Replay: a replica whose steps end when a record says, whatever they are predicted to cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import inf
from typing import Any, Protocol

from cbsim.core.stepping import Slice, StepwiseWorld, WatchedStepper
from cbsim.results.run_log import RunLog
from cbsim.studies.experiment import Experiment
from cbsim.studies.run import make_cost_model
from cbsim.studies.simulation import setup_of, step_through, stepwise, stepwise_log
from cbsim.workload.request_source import Workload


class StepClock(Protocol):
    """Says when steps end."""

    def end_s(self, number: int, slices: Sequence[Slice], start_s: float, predicted_s: float) -> float:
        """The end of a step that has just been decided, after `start_s`."""


class RecordedSteps:
    """The clock of a run that recorded every step's end, in order; steps beyond them take as predicted."""

    def __init__(self, ends_s: Sequence[float]) -> None:
        self._ends_s = ends_s

    def end_s(self, number: int, slices: Sequence[Slice], start_s: float, predicted_s: float) -> float:
        """See `StepClock.end_s`."""
        recorded = self._ends_s[number] if number < len(self._ends_s) else start_s
        return recorded if recorded > start_s else start_s + predicted_s


class ReplayedReplica(WatchedStepper):
    """A replica on a clock that is not its cost model's."""

    def __init__(self, world: StepwiseWorld, number: int, clock: StepClock) -> None:
        super().__init__(world, number)
        self._clock = clock

    def began(self, step: Any) -> None:
        """See `WatchedStepper.began`."""
        step.end_s = self._clock.end_s(step.number, self.slices(step), step.start_s, step.duration_s)
        step.duration_s = step.end_s - step.start_s


def replay(experiment: Experiment, workload: Workload, clock: StepClock) -> RunLog:
    """What an experiment's scheduler decides on one replica if steps end by the clock; with its batches."""
    setup = setup_of(experiment, workload, make_cost_model(experiment))
    setup = replace(setup, num_replicas=1, until_s=inf, with_batches=True)
    world = stepwise(setup, make_replica=partial(ReplayedReplica, clock=clock))
    step_through(world, setup)
    return stepwise_log(world, setup)
