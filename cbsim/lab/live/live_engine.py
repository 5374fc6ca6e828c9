"""LiveEngine: a replica whose steps are computed, and take the time they take."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from typing import ClassVar

from cbsim.base.errors import ConfigError
from cbsim.cluster.engine.recorder import Recorder
from cbsim.cluster.engine.reference import ReferenceEngine, Step
from cbsim.config.section import ComponentConfig
from cbsim.cost.cost_model import CostModel, StepShape
from cbsim.lab.live.numbered_blocks import LivePool
from cbsim.lab.live.runner import LiveSlice, ModelRunner, Moves
from cbsim.lab.live.tokens import TokenBook
from cbsim.schedulers.base import Scheduler, StepPlan
from cbsim.workload.request import Request

Clock = Callable[[], float]
"""Seconds since the run began."""


class WallClockCost(CostModel):
    """Stands where the simulation has a cost model: a live step's seconds are known only when it has run."""

    Config: ClassVar[type[ComponentConfig]] = ComponentConfig

    def __init__(self) -> None:
        """No settings, no model, no GPU."""

    def step_s(self, shape: StepShape) -> float:
        """Raises RuntimeError: nobody may ask."""
        raise RuntimeError("a live step's seconds are not known before it has run")


class LiveEngine(ReferenceEngine):
    """Decides and records as the naive simulated engine does; `compute` runs the step at hand for real.

    A step lasts from the end of the one before, or from the call that decided it, until its tokens are known:
    the host's work is in it. With two steps in flight the second is decided before the first is computed.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        recorder: Recorder,
        num_in_flight: int,
        runner: ModelRunner,
        book: TokenBook,
        clock: Clock,
    ) -> None:
        super().__init__(0, scheduler, WallClockCost(), recorder, num_in_flight)
        if not isinstance(scheduler.pool, LivePool):
            raise ConfigError("a live engine needs a scheduler over a LivePool")
        self.pool = scheduler.pool
        self.runner = runner
        self.book = book
        self.clock = clock
        self._work: deque[tuple[list[LiveSlice], Moves]] = deque()
        self._moves = Moves()
        self._swapped: set[int] = set()

    def call(self, now: float) -> None:
        """See `Engine.call`; each step's blocks are taken down, as later decisions may change them."""
        while len(self.under_way) < self.num_in_flight:
            plan = self.scheduler.plan(now)
            number = self._num_steps if plan.slices else -1
            self._record_decisions(plan, number)
            self._note_moves(plan)
            if not plan.slices:
                return
            self._work.append((self._slices(plan), self._moves))
            self._moves = Moves()
            self._num_steps += 1
            self._begin(Step(number, plan, now, math.nan, math.nan))

    def compute(self) -> float:
        """Run the step at hand; returns the instant it ended. `end_step` then takes its effects."""
        step = self.under_way[0]
        slices, moves = self._work.popleft()
        self.runner.move(moves)
        self.runner.run(slices, self.book)
        if self._num_ended:
            step.start_s = max(step.start_s, self.last_end_s)
        # Two steps never end at one instant, however coarse the clock.
        step.end_s = max(self.clock(), math.nextafter(step.start_s, math.inf))
        step.duration_s = step.end_s - step.start_s
        return step.end_s

    def end_step(self) -> list[Request]:
        """See `Engine.end_step`."""
        finished = super().end_step()
        for request in finished:
            self._swapped.discard(request.index)
        return finished

    def slice_columns(self) -> None:
        """None: nobody can say what a live step would have taken with less in it."""

    @property
    def _num_ended(self) -> int:
        return self._num_steps - len(self.under_way)

    def _slices(self, plan: StepPlan) -> list[LiveSlice]:
        return [
            LiveSlice(
                part.request,
                part.num_tokens,
                part.num_computed_tokens,
                part.emits,
                self.pool.table(part.request),
            )
            for part in plan.slices
        ]

    def _note_moves(self, plan: StepPlan) -> None:
        """Which requests' KV moves before the next step: out in the order of preemption, then back."""
        host = getattr(self.scheduler, "swap", None)
        if host is None:
            return
        for victim in plan.preempted:
            if victim in host:
                num_blocks = self.pool.blocks_for(victim.num_computed_tokens)
                self._moves.out.append((victim.index, self.pool.released(victim)[:num_blocks]))
                self._swapped.add(victim.index)
        for part in plan.slices:
            if part.request.index in self._swapped and part.request not in host:
                num_blocks = self.pool.blocks_for(part.num_computed_tokens)
                self._moves.back.append((part.request.index, list(part.request.blocks[:num_blocks])))
                self._swapped.discard(part.request.index)


def wall_clock() -> Clock:
    """A clock that starts now."""
    start = time.perf_counter()
    return lambda: time.perf_counter() - start
