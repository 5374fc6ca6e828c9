"""Replica: one replica of a fleet, and what happened there so far; why the head of its queue waits."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from statistics import fmean
from typing import Any, NamedTuple

from cbsim.base.units import format_seconds
from cbsim.cli.play import tuning
from cbsim.core import layout
from cbsim.core.layout import NOBODY
from cbsim.core.leaving import is_here
from cbsim.core.pool import blocks_for, find_prefix, num_missing
from cbsim.core.stepping import DECISIONS, Slice, Stepper
from cbsim.core.transfers import num_external
from cbsim.results.metrics import DEFAULT_POOL
from cbsim.schedulers.admission import num_blocks_missing, num_owed
from cbsim.schedulers.paged import PagedScheduler
from cbsim.schedulers.reserving import ReservingScheduler, num_reserved
from cbsim.schedulers.scheduler import Scheduler
from cbsim.schedulers.static import StaticScheduler
from cbsim.studies.experiment import Experiment
from cbsim.studies.setup import Setup
from cbsim.workload.request import Request, RequestState

_MAX_POOL = 9
"""Letters of a pool's name."""
UNLIMITED = 2**31
"""The token budget of a scheduler that has none."""
_EVENTS = {
    **DECISIONS,
    layout.LOAD_STARTED: "fetches KV",
    layout.LOADED: "KV has come",
    layout.SENT: "KV was fetched",
    layout.FINISHED_NOW: "finished",
    layout.FAILED_NOW: "lost",
}
"""Codes of the record -> what an `Event` calls them."""


class Event(NamedTuple):
    """Something that happened to a request."""

    time_s: float
    step: int
    """-1 outside any step."""
    what: str
    """One of `_EVENTS`, `handed over`, `rejected`, or `changed` for a setting."""
    request: Request | None
    detail: str


class EventLog:
    """Events of a replica that can be read while the run goes on."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.num_preemptions = 0

    def take(self, row: Any, request: Request) -> None:
        """Take in a row of the core's events."""
        self.num_preemptions += row.event == layout.PREEMPTED_NOW
        if row.event not in _EVENTS:
            return
        num_tokens, is_load = row.num_tokens, row.event == layout.LOAD_STARTED
        if request.stage == layout.DECODE_STAGE:
            # The last token's KV is what the first step here computes; what is fetched is told once.
            num_tokens = num_tokens - 1 if is_load else 0
        detail = f"{num_tokens} {'tokens' if is_load else 'cached'}" if num_tokens else ""
        what = _EVENTS[row.event]
        if what == "finished" and request.state == RequestState.HANDED_OVER:
            what = "handed over"
        self.events.append(Event(row.time_s, row.step, what, request, detail))


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


def score_of(visits: Sequence[Any], planned: Sequence[Any]) -> Score:
    """The figures of requests that have come, by their visits to replicas and as they were planned."""
    last = [visit for visit in visits if visit.next_visit == NOBODY]
    finished = [visit for visit in last if visit.state == RequestState.FINISHED]
    begun = [visit for visit in last if visit.first_token_at_s == visit.first_token_at_s]
    ttfts_s = [visit.first_token_at_s - planned[visit.source].arrival_s for visit in begun]
    num_later = [(visit, planned[visit.source].num_output_tokens - 1) for visit in finished]
    tpots_s = [(visit.last_token_at_s - visit.first_token_at_s) / num for visit, num in num_later if num]
    return Score(
        num_finished=len(finished),
        num_rejected=sum(visit.state == RequestState.REJECTED for visit in last),
        mean_ttft_s=fmean(ttfts_s) if ttfts_s else None,
        mean_tpot_s=fmean(tpots_s) if tpots_s else None,
    )


class Replica:
    """One replica of a `Fleet`, which says what happens there."""

    def __init__(self, experiment: Experiment, setup: Setup, stepper: Stepper, pool: int) -> None:
        """`experiment` and `setup` are its pool's, which is number `pool`."""
        self.experiment, self.setup, self.pool = experiment, setup, pool
        self.number = stepper.replica
        self.stepper = stepper
        """The one that decides now: another one under another scheduler."""
        self.log = EventLog()
        self.last_step: Any = None
        """The `STEP` that ended last; `None` before the first."""
        self.last_slices: list[Slice] = []
        self.head_reason: tuple[Request, str] | None = None
        """The head of the queue at the last decision, and why it was left there."""
        self._present: list[Request] = []

    @property
    def now_s(self) -> float:
        """The instant of what happened last anywhere."""
        return float(self.stepper.world.records.clients.now)

    @property
    def name(self) -> str:
        """What it is called among others: its pool, if that has a name of its own, and its number in all."""
        pool = self.setup.pool_name
        return f"{'replica' if pool == DEFAULT_POOL else pool[:_MAX_POOL]} {self.number}"

    @property
    def num_steps(self) -> int:
        """Steps that have ended since the beginning."""
        return 0 if self.last_step is None else int(self.last_step.number) + 1

    @property
    def live(self) -> list[Request]:
        """Requests that have arrived here and not ended."""
        return [request for request in self.present if is_here(request)]

    @property
    def present(self) -> list[Request]:
        """Requests in order of arrival that have not ended, or hold KV blocks still."""
        self._present = [request for request in self._present if is_here(request) or request.num_blocks]
        return self._present

    @property
    def waiting(self) -> list[Request]:
        """Who waits, in the order in which the last decision found them, but for those whose KV comes."""
        own, holding = self.stepper.own, set(self.holding)
        waiting = self.stepper.waiting(self.stepper.decided_at_s) if own.num_waiting else []
        return [request for request in waiting if request not in holding]

    @property
    def holding(self) -> list[Request]:
        """Requests that hold KV blocks while their KV comes, until they are admitted."""
        return self._on_the_way(layout.LOADING, layout.READY)

    @property
    def sending(self) -> list[Request]:
        """Requests that were handed over, whose KV keeps its blocks until it was fetched."""
        return self._on_the_way(layout.SENDING)

    def origin(self, request: Request) -> Request:
        """The request as it was planned, which may be here for a part of its tokens."""
        planned: list[Request] = self.stepper.world.records.planned
        return planned[request.source]

    def submitted(self, request: Request) -> None:
        """A request has joined the queue."""
        self._present.append(request)
        self.stepper.make_room()

    def decided(self, now: float) -> None:
        """The scheduler has been asked: note why the head of the queue still waits."""
        self.stepper.decided_at_s = now
        head, under_way = self.stepper.head(now), self.stepper.under_way
        self.head_reason = None
        if head is not None:
            budget, num_preempted = None, 0
            if under_way:
                budget, num_preempted = under_way[-1].budget, under_way[-1].num_preempted
            reason = why_waiting(self.stepper, self.setup.rung, now, budget, num_preempted)
            self.head_reason = (head, reason)

    def rejected(self, request: Request, now: float) -> None:
        """A request has come that is not served."""
        is_full = request.rejection == layout.QUEUES_FULL
        reason = "every queue is full" if is_full else tuning.told_rejection(self.setup, request)
        self.log.events.append(Event(now, -1, "rejected", request, reason))

    def ended(self, place: int) -> None:
        """The step at a place of the ring of steps has ended."""
        self.last_step = copy(self.stepper.records.under_way[place])
        self.last_slices = self.stepper.slices(self.last_step)

    def become(self, experiment: Experiment, setup: Setup) -> None:
        """Its settings are others from now on."""
        self.experiment, self.setup, self.head_reason = experiment, setup, None

    def _on_the_way(self, *states: int) -> list[Request]:
        records, own = self.stepper.records, self.stepper.own
        rows = records.transfers[: own.num_transfers]
        return [self.stepper.requests[row] for row in rows if records.extras[row].transfer in states]


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
    there = f"{free} free"
    if stepper.own.num_sending:
        kept = records.transfers[: stepper.own.num_transfers]
        there += f", {sum(stepper.requests[row].num_blocks for row in kept)} kept until fetched"
    if issubclass(rung, ReservingScheduler):
        needed = bound(num_reserved)(records, head)
        if needed > free:
            return f"no KV blocks: prompt and answer take {needed}, {there}"
        if budget is not None and head.num_prompt_tokens > budget:
            return f"no budget: prompt of {head.num_prompt_tokens} tokens, {budget} left, and none is split"
    if issubclass(rung, PagedScheduler):
        found = bound(find_prefix)(records, head)
        coming = bound(num_external)(records, head, found[0])
        if coming:
            needed = bound(num_missing)(records, head, found[0] + coming, found[0]) + found[1]
            owed = bound(num_owed)(records)
            if needed > free - owed:
                told = f", {owed} of them for others" if owed else ""
                return f"no KV blocks for its KV: {needed} needed, {there}{told}"
            return None
        missing = bound(num_blocks_missing)(records, head, head.num_computed_tokens + 1, *found)
        if missing > 0:
            return f"no KV blocks: {missing + free} needed, {there}"
        if budget is not None and not records.config.enable_chunked_prefill:
            return f"no budget: its prompt must stay whole, {budget} tokens left"
    needed = blocks_for(records, head.num_known_tokens)
    return f"no KV blocks: {needed} needed, {there}" if needed > free else None
