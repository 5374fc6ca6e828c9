"""Replica: one replica from the first instant on, a step at a time, and what happened there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from cbsim.base.errors import ConfigError
from cbsim.base.units import format_seconds
from cbsim.cli.play import tuning
from cbsim.cli.play.settings import LIVE, NUM_BLOCKS, changes, told
from cbsim.core import layout
from cbsim.core.driver import RuleFault
from cbsim.core.pool import blocks_for, find_prefix
from cbsim.core.stepping import DECISIONS, Slice, Stepper, StepwiseWorld
from cbsim.schedulers.admission import num_blocks_missing
from cbsim.schedulers.paged import PagedScheduler
from cbsim.schedulers.reserving import ReservingScheduler, num_reserved
from cbsim.schedulers.scheduler import Scheduler
from cbsim.schedulers.static import StaticScheduler
from cbsim.studies.experiment import Experiment
from cbsim.studies.run import make_cost_model
from cbsim.studies.simulation import Setup, stepwise, told_fault
from cbsim.workload import Workload
from cbsim.workload.request import Request, RequestState

UNLIMITED = 2**31
"""The token budget of a scheduler that has none."""
_EVENTS = {**DECISIONS, layout.FINISHED_NOW: "finished"}
"""Codes of the record -> what an `Event` calls them."""


class Event(NamedTuple):
    """Something that happened to a request."""

    time_s: float
    step: int
    """-1 outside any step."""
    what: str
    """`admitted`, `resumed`, `preempted`, `finished` or `rejected`, or `changed` for a setting."""
    request: Request | None
    detail: str


class EventLog:
    """Events that can be read while the run goes on."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.num_preemptions = 0
        self._num_read = 0

    def read(self, world: StepwiseWorld) -> None:
        """Take in what a world, or one that came in its place, has written down since the last call."""
        log = world.records.log
        num_rows = log.lengths.events
        for row in log.events[self._num_read : num_rows]:
            self.num_preemptions += row.event == layout.PREEMPTED_NOW
            if row.event in _EVENTS:
                detail = f"{row.num_tokens} tokens cached" if row.num_tokens else ""
                request = world.requests[row.request]
                self.events.append(Event(row.time_s, row.step, _EVENTS[row.event], request, detail))
        self._num_read = num_rows

    def rejected(self, request: Request, reason: str) -> None:
        """A request has come that could never be served."""
        self.events.append(Event(request.arrival_s, -1, "rejected", request, reason))

    def changed(self, now: float, detail: str) -> None:
        """A setting has changed, between two steps."""
        self.events.append(Event(now, -1, "changed", None, detail))


class Score(NamedTuple):
    """The figures of a run so far, defined as in `summary.json`.

    Times are seconds; `None` before there is anything to average.
    """

    num_finished: int
    num_rejected: int
    mean_ttft_s: float | None
    """Over the requests that have a token."""
    mean_tpot_s: float | None
    """Over the finished requests of more than one token."""


def score_of(requests: Sequence[Any]) -> Score:
    """The figures of requests that have come."""
    finished = [request for request in requests if request.state == RequestState.FINISHED]
    begun = [request for request in requests if request.num_generated_tokens]
    longer = [request for request in finished if request.num_output_tokens > 1]
    return Score(
        num_finished=len(finished),
        num_rejected=sum(request.state == RequestState.REJECTED for request in requests),
        mean_ttft_s=_mean(request.first_token_at_s - request.arrival_s for request in begun),
        mean_tpot_s=_mean(
            (request.last_token_at_s - request.first_token_at_s) / (request.num_output_tokens - 1)
            for request in longer
        ),
    )


class Replica:
    """One replica of a `Fleet`, which says when it decides and when its step ends."""

    def __init__(self, experiment: Experiment, workload: Workload, number: int) -> None:
        """`number` counts from 0."""
        self.experiment = experiment
        self.number = number
        self.setup = tuning.make_setup(experiment, workload, make_cost_model(experiment))
        self.stepper = stepwise(self.setup).replicas[0]
        """The one that decides now: another one under another scheduler."""
        self.log = EventLog()
        self.now_s = 0.0
        """When something last happened here."""
        self.is_due = True
        """Whether it is to decide before anything else happens."""
        self.last_step: Any = None
        """The `STEP` that ended last; `None` before the first."""
        self.last_slices: list[Slice] = []
        self.head_reason: tuple[Request, str] | None = None
        """The head of the queue at the last decision, and why it was left there."""
        self.present: list[Request] = []
        """Requests in order of arrival that have not ended, or hold KV blocks still (of a static batch)."""

    @property
    def num_steps(self) -> int:
        """Steps that have ended since the beginning."""
        return 0 if self.last_step is None else int(self.last_step.number) + 1

    @property
    def live(self) -> list[Request]:
        """Requests that have arrived and not ended."""
        return [request for request in self.present if request.state != RequestState.FINISHED]

    def decide(self) -> None:
        """Let the scheduler decide now, and note why the head of the queue still waits."""
        self.is_due = False
        try:
            self.stepper.call(self.now_s)
        except RuleFault as fault:
            ids = np.array([request.request_id for request in self.stepper.world.requests], dtype=object)
            raise told_fault(fault, self.setup, ids) from fault
        self.log.read(self.stepper.world)
        self._note_head()

    def wake(self, at_s: float) -> None:
        """An idle replica is to decide at an instant."""
        self.now_s, self.is_due = at_s, True

    def add(self, request: Request, now: float) -> None:
        """A request arrives now; it is rejected if it could never be served."""
        if not self.stepper.under_way:
            self.wake(now)
        if self.stepper.submit(request):
            self.present.append(request)
        else:
            self.log.rejected(request, tuning.told_rejection(self.setup, request, request.rejection))

    def end_step(self) -> None:
        """The step under way ends."""
        step = copy(self.stepper.under_way[0])
        self.last_step, self.last_slices = step, self.stepper.slices(step)
        self.wake(step.end_s)
        self.stepper.end_step()
        self.log.read(self.stepper.world)
        self.present = [
            request
            for request in self.present
            if request.state != RequestState.FINISHED or request.num_blocks
        ]

    def setup_for(self, experiment: Experiment) -> Setup:
        """The setup of other settings of the scheduler or another number of KV blocks.

        Raises `ConfigError` if a request that is here could never be served then, for fewer blocks than are
        in use, and for settings that can't change.
        """
        changed = changes(self.experiment, experiment)
        fixed = [key for key in changed if key != NUM_BLOCKS and not key.startswith("scheduler.")]
        if fixed:
            raise ConfigError(*(f"{key}: can't change while it runs; name it in --set" for key in fixed))
        setup = tuning.make_setup(experiment, self.setup.workload, self.setup.cost)
        num_blocks, num_used = setup.pool.num_blocks, self.stepper.num_blocks_used
        if num_blocks < num_used:
            raise ConfigError(
                f"{NUM_BLOCKS}: got {num_blocks}, but {num_used} blocks are in use; only free ones can go"
            )
        tuning.check_servable(setup, self.live)
        return setup

    def takes_on(self, experiment: Experiment) -> bool:
        """Whether the scheduler goes on with other settings, instead of another one in its place."""
        changed = changes(self.experiment, experiment)
        return changed.keys() <= {NUM_BLOCKS, *(f"scheduler.{name}" for name in LIVE)}

    def become(self, experiment: Experiment, setup: Setup, now: float) -> None:
        """Go on with what `setup_for` gave; another scheduler begins now, with no step under way."""
        if self.takes_on(experiment):
            tuning.tune(self.stepper, setup, self.present)
        else:
            self.wake(now)
            tuning.clear(self.stepper, self.now_s)
            self.stepper = tuning.succeed(self.stepper, setup)
            self.log.read(self.stepper.world)
            self.present = self.live
        brief = told(changes(self.experiment, experiment))
        self.setup, self.experiment = setup, experiment
        self.head_reason = None
        brief = brief.replace("scheduler ", "").replace("scheduler.", "").replace(" -> ", "→")
        self.log.changed(now, brief)

    def _note_head(self) -> None:
        head, under_way = self.stepper.head(self.now_s), self.stepper.under_way
        self.head_reason = None
        if head is not None:
            budget, num_preempted = None, 0
            if under_way:
                budget, num_preempted = under_way[-1].budget, under_way[-1].num_preempted
            reason = why_waiting(self.stepper, self.setup.rung, self.now_s, budget, num_preempted)
            self.head_reason = (head, reason)


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return fmean(known) if known else None


def why_waiting(
    stepper: Stepper, rung: type[Scheduler], now: float, budget: int | None, num_preempted: int
) -> str:
    """A few words, right after a decision that left the head of the queue where it was.

    `budget` is what the decision left of the step's tokens, `None` if it made no step; `num_preempted` is how
    many it preempted.
    """
    head, own, config = stepper.head(now), stepper.own, stepper.records.config
    if head is None:
        return "nobody waits"
    if issubclass(rung, StaticScheduler):
        return _static(stepper, head)
    if num_preempted and issubclass(rung, PagedScheduler):
        return "a step that preempts admits nobody"
    if own.num_running >= config.max_num_seqs:
        return f"no slot: {own.num_running} run, max_num_seqs is {config.max_num_seqs}"
    if budget == 0:
        return f"no budget: all {config.max_tokens_per_step} tokens are taken"
    return _blocks(stepper, rung, head, budget) or "the scheduler let it wait"


def _static(stepper: Stepper, head: Request) -> str:
    own, config = stepper.own, stepper.records.config
    if own.num_batch:
        return f"the batch of {own.num_batch} runs until its last request has ended"
    until_s = head.arrival_s + config.batch_timeout_s
    filled = f"{own.num_waiting} of {config.num_slots}"
    return f"the batch fills up: {filled}, until {format_seconds(until_s)}"


def _blocks(stepper: Stepper, rung: type[Scheduler], head: Request, budget: int | None) -> str | None:
    records, bound, free = stepper.records, stepper.world.bound, stepper.own.num_free
    if issubclass(rung, ReservingScheduler):
        needed = bound(num_reserved)(records, head)
        if needed > free:
            return f"no KV blocks: prompt and answer take {needed}, {free} free"
        if budget is not None and head.num_prompt_tokens > budget:
            return f"no budget: prompt of {head.num_prompt_tokens} tokens, {budget} left, and none is split"
    if issubclass(rung, PagedScheduler):
        found = bound(find_prefix)(records, head)
        missing = bound(num_blocks_missing)(records, head, head.num_computed_tokens + 1, *found)
        if missing > 0:
            return f"no KV blocks: {missing + free} needed, {free} free"
        if budget is not None and not records.config.enable_chunked_prefill:
            return f"no budget: its prompt must stay whole, {budget} tokens left"
    needed = blocks_for(records, head.num_known_tokens)
    return f"no KV blocks: {needed} needed, {free} free" if needed > free else None
