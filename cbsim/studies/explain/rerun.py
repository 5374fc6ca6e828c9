"""Rerun: an experiment simulated again step by step, each step handed on as it ends."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from cbsim.cluster.simpy_world import Progress
from cbsim.core.building import LOG_ROWS
from cbsim.core.layout import STEP
from cbsim.core.stepping import Slice, Stepper, StepwiseWorld, WatchedStepper
from cbsim.studies.experiment import Experiment
from cbsim.studies.explain.batch_step import BatchStep, Limits, Share
from cbsim.studies.run import make_cost_model, make_workload
from cbsim.studies.simulation import setup_of, step_through, stepwise
from cbsim.workload.request import Request

Take = Callable[[BatchStep], None]
"""Takes a step with its batch, when it has ended."""
Check = Callable[[Any, Sequence[Slice]], None]
"""Looks at a `STEP` and its slices before it ends; may raise."""


@dataclass(frozen=True, slots=True)
class Window:
    """Steps `first` to `last` of a replica, both included; `None` for all that follow."""

    replica: int
    first: int
    last: int | None = None


class _Enough(Exception):
    """The last step of the window has ended."""


def rerun(
    experiment: Experiment, window: Window, take: Take, check: Check | None, progress: Progress | None
) -> None:
    """Simulate an experiment up to the window's end and hand its steps to `take`.

    `check` sees every step of the window's replica up to its end. Raises `PluginError` if a third party's
    scheduler fails.
    """
    limits = Limits.of(experiment.resolved())
    setup = setup_of(experiment, make_workload(experiment), make_cost_model(experiment))

    def make_replica(world: StepwiseWorld, number: int) -> Stepper:
        if number == window.replica:
            return _ShownReplica(world, window, limits, take, check)
        return Stepper(world, number)

    world = stepwise(setup, make_replica=make_replica)
    with suppress(_Enough):
        # An OSError is of `take`, whose reader may be gone.
        step_through(world, setup, progress=progress, passes=(_Enough, OSError))


class _ShownReplica(WatchedStepper):
    """A replica that hands over its steps with their batches."""

    def __init__(
        self, world: StepwiseWorld, window: Window, limits: Limits, take: Take, check: Check | None
    ) -> None:
        super().__init__(world, window.replica)
        self._window, self._limits, self._take, self._check = window, limits, take, check
        self._decisions: dict[int, dict[str, list[tuple[str, int]]]]
        self._decisions = defaultdict(lambda: defaultdict(list))
        self._shares: dict[int, tuple[Share, ...]] = {}
        """Both are of the steps under way, by their numbers."""

    def decided(self, step: Any) -> None:
        """Keep decisions for the step they belong to; those of a call that made none, for the next."""
        for what, request, num_cached in self.decisions(step):
            self._decisions[self.own.num_steps][what].append((request.request_id, num_cached))

    def began(self, step: Any) -> None:
        """Keep the batch as requests stand now: another step may be decided before this one ends."""
        if step.number >= self._window.first:
            self._shares[step.number] = tuple(map(_share, self.slices(step)))

    def end_step(self) -> list[Request]:
        """See `Stepper.end_step`."""
        step, window = self.under_way[0], self._window
        if self._check is not None:
            self._check(step, self.slices(step))
        decisions = self._decisions.pop(step.number, {})
        shares = self._shares.pop(step.number, ())
        finished = super().end_step()
        parts = self.records.slices[step.place]
        shares = tuple(
            replace(share, num_drafts=part.num_drafts, num_accepted=part.num_accepted)
            for share, part in zip(shares, parts, strict=False)
        )
        if self.records.log.lengths.steps >= LOG_ROWS:
            self.world.record()  # Nobody asks for it.
        if step.number < window.first:
            return finished
        row = {name: getattr(step, name) for name in STEP.names or ()}
        row |= {"replica": self.replica, "step": step.number, "scheduled_at_s": step.now}
        row["kv_blocks_total"] = self.own.num_blocks
        decisions["finished"] = [(request.request_id, 0) for request in finished]
        self._take(self._limits.batch_step(row, shares, decisions))
        if step.number == window.last:
            raise _Enough
        return finished


def _share(part: Slice) -> Share:
    request = part.request
    num_left = request.prefill_until - part.num_computed_tokens if part.is_prefill else 1
    return Share(request.request_id, part.num_tokens, num_left, part.is_prefill, request.num_blocks)
