"""Rerun: an experiment simulated again by the naive engine, each step handed on as it ends."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from cbsim.cluster.engine.recorder import Recorder
from cbsim.cluster.engine.reference import ReferenceEngine, Step
from cbsim.cluster.simpy_world import Progress
from cbsim.cost import CostModel
from cbsim.schedulers import Scheduler
from cbsim.schedulers.base import Slice, StepPlan
from cbsim.studies.experiment import Experiment
from cbsim.studies.explain.batch_step import BatchStep, Share
from cbsim.studies.explain.waiting import Limits
from cbsim.studies.run import make_cost_model, make_workload, make_world, run_world
from cbsim.workload.request import Request

Take = Callable[[BatchStep], None]
"""Takes a step with its batch, when it has ended."""
Check = Callable[[Step], None]
"""Looks at a step before it ends; may raise."""


@dataclass(frozen=True, slots=True)
class Window:
    """Steps `first` to `last` of a replica, both included; `None` for all that follow."""

    replica: int
    first: int
    last: int | None = None


class _Enough(Exception):
    """The last step of the window has ended."""


def rerun(
    experiment: Experiment,
    window: Window,
    take: Take,
    check: Check | None = None,
    progress: Progress | None = None,
) -> None:
    """Simulate an experiment up to the window's end and hand its steps to `take`.

    `check` sees every step of the window's replica up to its end. Raises `PluginError` if a third party's
    scheduler fails.
    """
    cost, limits = make_cost_model(experiment), Limits.of(experiment.resolved())
    recorder = Recorder()

    def make_engine(replica: int, scheduler: Scheduler, num_in_flight: int) -> ReferenceEngine:
        if replica == window.replica:
            return _WatchedEngine(window, scheduler, cost, recorder, num_in_flight, limits, take, check)
        return ReferenceEngine(replica, scheduler, cost, recorder, num_in_flight)

    world = make_world(experiment, make_workload(experiment), cost, make_engine, progress=progress)
    with suppress(_Enough):
        # An OSError is of `take`, whose reader may be gone.
        run_world(world, cost, passes=(_Enough, OSError))


class _WatchedEngine(ReferenceEngine):
    """The naive engine, which hands over steps with their batches."""

    def __init__(
        self,
        window: Window,
        scheduler: Scheduler,
        cost: CostModel,
        recorder: Recorder,
        num_in_flight: int,
        limits: Limits,
        take: Take,
        check: Check | None,
    ) -> None:
        super().__init__(window.replica, scheduler, cost, recorder, num_in_flight)
        self._window = window
        self._limits = limits
        self._take = take
        self._check = check
        self._decisions: dict[int, list[tuple[str, Request, int]]] = {}
        self._shares: dict[int, tuple[Share, ...]] = {}
        """These two of steps under way, by their numbers."""

    def end_step(self) -> list[Request]:
        """See `Engine.end_step`."""
        step, window = self.under_way[0], self._window
        if self._check is not None:
            self._check(step)
        decisions = self._decisions.pop(step.number, [])
        shares = self._shares.pop(step.number, ())
        finished = super().end_step()
        if step.number < window.first:
            return finished
        self._take(self._batch_step(step, shares, decisions, finished))
        if step.number == window.last:
            raise _Enough
        return finished

    def _record_decisions(self, plan: StepPlan, number: int) -> None:
        """Keep them for the step they belong to; those of a call that made none, for the next.

        And the batch as requests stand now: another step may be decided before this one ends.
        """
        if plan.decisions:
            self._decisions.setdefault(self._num_steps, []).extend(plan.decisions)
        if plan.slices and number >= self._window.first:
            self._shares[number] = tuple(_share(part) for part in plan.slices)

    def _batch_step(
        self,
        step: Step,
        shares: tuple[Share, ...],
        decisions: list[tuple[str, Request, int]],
        finished: list[Request],
    ) -> BatchStep:
        plan = step.plan
        told: dict[str, list[tuple[str, int]]] = {"admitted": [], "resumed": [], "preempted": []}
        for what, request, num_cached in decisions:
            told[what].append((request.request_id, num_cached))
        return BatchStep(
            replica=self.replica,
            step=step.number,
            scheduled_at_s=plan.now,
            start_s=step.start_s,
            duration_s=step.duration_s,
            shares=shares,
            budget=self._limits.max_tokens_per_step,
            num_running=plan.num_running,
            num_waiting=plan.num_waiting,
            waits_for=self._limits.reason(
                code=plan.waiting_for,
                num_waiting=plan.num_waiting,
                num_running=plan.num_running,
                num_tokens=sum(share.num_tokens for share in shares),
                has_preempted=bool(plan.preempted),
            ),
            kv_blocks_used=plan.num_blocks_used,
            kv_blocks_total=self.scheduler.pool.num_blocks,
            admitted=tuple(told["admitted"]),
            resumed=tuple(told["resumed"]),
            preempted=tuple(request_id for request_id, _ in told["preempted"]),
            finished=tuple(request.request_id for request in finished),
        )


def _share(part: Slice) -> Share:
    request = part.request
    num_left = request.prefill_until - part.num_computed_tokens if part.is_prefill else 1
    return Share(request.request_id, part.num_tokens, num_left, part.is_prefill, request.num_blocks)
