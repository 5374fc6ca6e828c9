"""Replica: one engine with its arrivals, from the first instant on, a step at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from cbsim.base.errors import ConfigError
from cbsim.cli.play.event_log import EventLog
from cbsim.cli.play.queue_head import why_waiting
from cbsim.cli.play.score import Score
from cbsim.cli.play.settings import LIVE, NUM_BLOCKS, changes, told_briefly
from cbsim.cli.play.tuning import (
    check_servable,
    clear,
    is_tunable,
    make_pool,
    make_scheduler,
    queue_again,
    tune,
)
from cbsim.cluster.engine.reference import ReferenceEngine
from cbsim.results.run_log import PREEMPTED
from cbsim.schedulers import Scheduler, Slice
from cbsim.studies.experiment import Experiment
from cbsim.studies.run import make_cost_model
from cbsim.workload.request import Request, RequestState


class Tally(NamedTuple):
    """A step in three figures."""

    num_tokens: int
    num_blocks_used: int
    """This and the queue: right after it was decided."""
    num_waiting: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """A step that has ended."""

    number: int
    start_s: float
    end_s: float
    slices: tuple[Slice, ...]
    max_tokens: int
    """The token budget it had."""
    num_padding_tokens: int
    transfer_s: float
    """Seconds of it that KV blocks moved to and from host memory."""


class Replica:
    """Goes from step end to step end; in between, settings may change and requests may be added.

    Decides what `World` with one naive engine does: at one instant arrivals join, the step that ends takes
    effect, the next is decided (here: when `advance` is called next).
    """

    def __init__(self, experiment: Experiment, requests: Iterator[Request]) -> None:
        """`requests` come in order of arrival. Raises what reading them raises."""
        self.experiment = experiment
        self.cost = make_cost_model(experiment)
        self.pool = make_pool(experiment)
        self.log = EventLog()
        self.score = Score()
        scheduler = make_scheduler(experiment, self.cost, self.pool)
        self.engine = ReferenceEngine(0, scheduler, self.cost, self.log, self._num_in_flight)
        self.now_s = 0.0
        self.last_step: Outcome | None = None
        self.history: list[Tally] = []
        """Every step that has ended."""
        self.head_reason: tuple[Request, str] | None = None
        """The head of the queue at the last decision, and why it was left there."""
        self.present: list[Request] = []
        """Requests in order of arrival that have not ended, or hold KV blocks still (of a static batch)."""
        self._requests = requests
        self._next = next(requests, None)
        self._num_arrived = 0
        self._arrive()

    @property
    def scheduler(self) -> Scheduler:
        """The one that decides now."""
        return self.engine.scheduler

    @property
    def live(self) -> list[Request]:
        """Requests that have arrived and not ended."""
        return [request for request in self.present if request.state is not RequestState.FINISHED]

    @property
    def is_over(self) -> bool:
        """Whether every request has ended and none will come."""
        return self._next is None and not self.engine.num_outstanding

    @property
    def next_arrival_s(self) -> float | None:
        """When the next request comes, seconds; `None` if none will."""
        return None if self._next is None else self._next.arrival_s

    def advance(self) -> bool:
        """Decide the next step and let it end, after idling until there is one; False if there is none."""
        while True:
            if self.engine.num_outstanding:
                self.engine.call(self.now_s)
                self._note_head()
            if self.engine.under_way:
                self._end_step()
                return True
            if not self._idle():
                return False

    def add(self, request: Request) -> bool:
        """A request arrives now; False if it could never be served."""
        request.index = self._num_arrived
        self._num_arrived += 1
        accepted = self.engine.submit(request)
        if accepted:
            self.present.append(request)
        else:
            self.score.num_rejected += 1
        return accepted

    def become(self, experiment: Experiment) -> None:
        """Go on with other settings of the scheduler or another number of KV blocks.

        Limits change for those who run and wait; whatever else of the scheduler changes, it is another one:
        all are preempted, to be computed again, and queue at it. Raises `ConfigError`, and nothing has
        changed, if a request that is here could never be served then, for fewer blocks than are in use, and
        for settings that can't change.
        """
        changed = changes(self.experiment, experiment)
        fixed = [key for key in changed if key != NUM_BLOCKS and not key.startswith("scheduler.")]
        if fixed:
            raise ConfigError(*(f"{key}: can't change while it runs; name it in --set" for key in fixed))
        num_blocks = self._num_blocks_wanted(experiment) if NUM_BLOCKS in changed else None
        check_servable(experiment, self.cost, self.live)
        if num_blocks is not None:
            self.pool.resize(num_blocks, self.present)
        limits = {f"scheduler.{name}" for name in LIVE}
        settings = changed.keys() - {NUM_BLOCKS}
        if settings <= limits and is_tunable(self.scheduler):
            tune(self.scheduler, self.experiment, experiment, self.cost)
            self.experiment = experiment
        else:
            self._replace_scheduler(experiment)
        self.head_reason = None
        self.log.changed(self.now_s, told_briefly(changed))

    @property
    def _num_in_flight(self) -> int:
        return 2 if self.experiment.scheduler.async_scheduling else 1

    def _num_blocks_wanted(self, experiment: Experiment) -> int:
        kv_cache = experiment.kv_cache
        num_blocks = kv_cache.size(experiment.model, experiment.gpu, experiment.replicas.tensor_parallel)
        if num_blocks < self.pool.num_used:
            raise ConfigError(
                f"{NUM_BLOCKS}: got {num_blocks}, but {self.pool.num_used} blocks are in use; only free ones "
                "can go"
            )
        return num_blocks

    def _replace_scheduler(self, experiment: Experiment) -> None:
        while self.engine.under_way:
            self._end_step()
        for request in clear(self.scheduler, self.now_s).preempted:
            self.log.event(PREEMPTED, request, self.now_s, 0, -1, 0)
        waiting = list(self.scheduler.waiting)
        self.experiment = experiment
        self.pool = make_pool(experiment)
        self.engine.scheduler = make_scheduler(experiment, self.cost, self.pool)
        self.engine.num_in_flight = self._num_in_flight
        queue_again(waiting, self.scheduler)
        self.present = self.live

    def _end_step(self) -> None:
        step = self.engine.under_way[0]
        plan = step.plan
        self.now_s = step.end_s
        self._arrive()
        finished = self.engine.end_step()
        for part in plan.slices:
            if part.emits:
                self.score.emitted(part.request, step.end_s)
        for request in finished:
            self.score.finished(request, step.end_s)
        num_tokens = sum(part.num_tokens for part in plan.slices)
        self.history.append(Tally(num_tokens, plan.num_blocks_used, plan.num_waiting))
        self.last_step = Outcome(
            step.number,
            step.start_s,
            step.end_s,
            tuple(plan.slices),
            plan.budget + num_tokens,
            plan.num_padding_tokens,
            plan.transfer_s,
        )
        self.present = [
            request
            for request in self.present
            if request.state is not RequestState.FINISHED or request.num_blocks
        ]

    def _note_head(self) -> None:
        head = self.scheduler.waiting.head(self.now_s)
        plan = self.engine.under_way[-1].plan if self.engine.under_way else None
        self.head_reason = None
        if head is not None:
            budget, num_preempted = (plan.budget, len(plan.preempted)) if plan else (None, 0)
            self.head_reason = (head, why_waiting(self.scheduler, self.now_s, budget, num_preempted))

    def _idle(self) -> bool:
        """Let time pass until somebody arrives or the scheduler is to be asked; False if neither will be."""
        wake_s = self.scheduler.wake_at_s()
        instants = [] if self._next is None else [self._next.arrival_s]
        if wake_s is not None and wake_s > self.now_s:
            instants.append(wake_s)
        if not instants:
            return False
        self.now_s = min(instants)
        self._arrive()
        return True

    def _arrive(self) -> None:
        """Everybody who is due by now joins the queue."""
        while self._next is not None and self._next.arrival_s <= self.now_s:
            request, self._next = self._next, next(self._requests, None)
            self.add(request)
