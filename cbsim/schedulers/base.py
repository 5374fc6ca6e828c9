"""The contract of a scheduler, and the parts that policies are made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from cbsim.base.errors import PluginError
from cbsim.config.section import ComponentConfig
from cbsim.schedulers.kvcache import BlockPool, PrefixHit
from cbsim.schedulers.queues import FcfsQueue, WaitingQueue
from cbsim.schedulers.rung import Rung
from cbsim.schedulers.step_plan import Slice, StepPlan, WaitingFor, shape_of
from cbsim.workload.request import Request, RequestState

__all__ = [
    "Prices",
    "Resources",
    "Scheduler",
    "SchedulerConfig",
    "Slice",
    "StepPlan",
    "WaitingFor",
    "shape_of",
]


class SchedulerConfig(ComponentConfig):
    """Settings that every scheduler has."""

    async_scheduling: bool = False
    """Decide the next step while one is running (two in flight), as vLLM does by default; false waits for
    each step's result first."""

    @property
    def reuses_unknown_blocks_first(self) -> bool:
        """Whether released KV blocks without cached content are taken before those with it."""
        return True


@dataclass(frozen=True, slots=True)
class Prices:
    """What a scheduler may know of costs, in seconds."""

    recompute_s: Callable[[int], float]
    """To compute so many tokens of one request again."""
    move_s: Callable[[int], float]
    """To move so many KV blocks between the GPU and host memory, one way."""
    block_bytes: int
    """Bytes of a KV block."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What a replica gives its scheduler."""

    pool: BlockPool
    prices: Prices
    max_model_len: int
    """Longest context the model was made for, tokens."""
    seed: int = 0


class Scheduler(ABC):
    """Decides, step by step, which request computes how many tokens.

    The engine calls `add` at a request's arrival, `plan` when a step can be decided and `commit` when it has
    run. A subclass writes `decide`, from the parts below it: it looks at `self.waiting` and `self.running`,
    admits, schedules and preempts. Requests and the block pool are its whole world: no clock of its own, no
    simulator, no torch, no cost model.
    """

    Config: ClassVar[type[SchedulerConfig]]
    rung: ClassVar[type[Rung] | None] = None
    reserves_ahead: ClassVar[bool] = False
    """Whether blocks are reserved at admission for tokens that may never come."""
    can_fast_forward: ClassVar[bool] = False
    """Whether a fast engine may keep decoding requests out of `running` while budget and blocks suffice.

    True promises: then each of them would get one token in every step (unless `prefill_excludes_decodes`),
    and `decide` uses nothing of them but their number, through `num_running`.
    """
    prefill_excludes_decodes: ClassVar[bool] = False
    """Whether decodes get nothing in a step that computes prompts."""
    decodes_first: ClassVar[bool] = True
    """Whether decodes come before prompts in a step; False: all in order of admission."""

    def __init__(self, config: SchedulerConfig, resources: Resources) -> None:
        self.config = config
        self.resources = resources
        self.pool = resources.pool
        self.max_tokens_per_step = int(getattr(config, "max_tokens_per_step", 2**31))
        """The token budget of a step."""
        self.max_num_seqs = int(getattr(config, "max_num_seqs", 2**31))
        """Most requests running at once."""
        self.running: list[Request] = []
        """In order of admission."""
        self.num_hidden = 0
        """Further running requests, all decoding, that a fast engine looks after (`can_fast_forward`)."""
        self.waiting: WaitingQueue = FcfsQueue()
        self._num_admissions = 0
        self.num_tokens_recomputed = 0
        self.num_tokens_queried = 0
        self.num_tokens_hit = 0

    # What the engine calls

    def rejection(self, request: Request) -> str | None:
        """Why this request could never be served, or `None`. Asked once, before `add`."""
        return None

    def add(self, request: Request) -> None:
        """A request has arrived."""
        request.waiting_since_s = request.arrival_s
        self.waiting.push(request)

    def plan(self, now: float, num_hidden_tokens: int = 0) -> StepPlan:
        """Decide the next step at the instant `now`, seconds; hidden decodes take so much of its budget."""
        step = StepPlan(now, self.max_tokens_per_step - num_hidden_tokens)
        self.decide(step)
        step.num_running = self.num_running
        step.num_waiting = len(self.waiting)
        if step.num_waiting:
            if self.num_running >= self.max_num_seqs:
                step.waiting_for = WaitingFor.SLOT
            elif step.waiting_for is not WaitingFor.KV_BLOCKS:
                step.waiting_for = WaitingFor.TURN
        step.num_blocks_used = self.pool.num_used
        step.num_kv_tokens = sum([request.num_computed_tokens for request in self.running])
        return step

    def commit(self, step: StepPlan) -> list[Request]:
        """Take the results of a step that has run: the requests that got their last token, in slice order."""
        finished = []
        for part in step.slices:
            if self._take_result(part):
                finished.append(part.request)
        return finished

    def wake_at_s(self) -> float | None:
        """When an idle engine should ask again although nothing arrived; `None` for never."""
        return None

    @property
    def decides_by_clock(self) -> bool:
        """Whether a head of the queue that can't be admitted may change by the mere passage of time."""
        return False

    @property
    def decides_by_progress(self) -> bool:
        """Whether tokens of running requests change the order of the queue."""
        return False

    def notes(self) -> list[str]:
        """Sentences for `summary.json`, complete at the end: what a policy asked for and did not find."""
        return []

    @property
    def num_running(self) -> int:
        """Requests that hold a slot."""
        return len(self.running) + self.num_hidden

    # What a policy is made of

    @abstractmethod
    def decide(self, step: StepPlan) -> None:
        """The policy: admit from `waiting`, schedule, preempt. Leave the step empty to wait."""

    def chunk_cap(self) -> int:
        """Most tokens of one request in this step."""
        return self.max_tokens_per_step

    def num_wanted(self, request: Request) -> int:
        """Tokens the request could compute now: those known or in flight, less those computed.

        0 if its last token is in flight already.
        """
        in_flight = request.num_in_flight_tokens
        if in_flight and request.num_generated_tokens + in_flight >= request.num_output_tokens:
            return 0
        return request.num_known_tokens + in_flight - request.num_computed_tokens

    def schedule(self, step: StepPlan, request: Request, num_tokens: int) -> None:
        """Let a running request compute `num_tokens` in this step. Its blocks must be there already.

        Raises `PluginError` for more tokens than the request has left or the step's budget.
        """
        computed = request.num_computed_tokens
        known = request.num_known_tokens
        num_left = known + request.num_in_flight_tokens - computed
        if not 0 < num_tokens <= min(num_left, step.budget):
            raise PluginError(
                f"{type(self).__name__} schedules {num_tokens} tokens of request {request.request_id}, which "
                f"has {num_left} left, with {step.budget} left of the step's budget"
            )
        emits = num_tokens == num_left
        is_prefill = computed < request.prefill_until
        step.slices.append(Slice(request, num_tokens, computed, is_prefill, emits, request.num_preemptions))
        step.budget -= num_tokens
        request.num_computed_tokens = computed + num_tokens
        request.num_in_flight_tokens += emits
        if self.pool.prefix_caching:
            self.pool.publish(request, min(computed + num_tokens, known))

    def admit(self, step: StepPlan, request: Request, hit: PrefixHit | None = None) -> None:
        """Move a request, the head of the waiting queue, to the end of the running list."""
        step.waiting_for = WaitingFor.NOBODY_WAITS
        self.waiting.remove(request)
        self.running.append(request)
        request.admission = self._num_admissions
        self._num_admissions += 1
        num_cached = 0
        if hit is not None:
            self.pool.adopt(request, hit)
            num_cached = len(hit.blocks) * self.pool.block_size
            self.num_tokens_queried += request.num_known_tokens if self.pool.prefix_caching else 0
            self.num_tokens_hit += num_cached
        request.num_computed_tokens = num_cached
        request.prefill_until = request.num_known_tokens
        if request.state is RequestState.PREEMPTED:
            self.num_tokens_recomputed += max(0, request.num_lost_tokens - num_cached)
            step.decisions.append(("resumed", request, num_cached))
        else:
            request.num_cached_tokens = num_cached
            request.first_scheduled_at_s = step.now
            step.decisions.append(("admitted", request, num_cached))
        request.waited_s += step.now - request.waiting_since_s
        request.state = RequestState.RUNNING

    def preempt(self, step: StepPlan, victim: Request) -> None:
        """Take all blocks and all progress from a running request and send it back to the waiting queue.

        If it had been scheduled in this very step, its entry leaves the step and its tokens the budget.
        """
        self.running.remove(victim)
        self.unschedule(step, victim)
        victim.num_lost_tokens = victim.num_computed_tokens
        self.pool.release(victim)
        victim.num_computed_tokens = 0
        victim.num_in_flight_tokens = 0
        victim.num_preemptions += 1
        victim.state = RequestState.PREEMPTED
        victim.waiting_since_s = step.now
        self.waiting.put_back(victim)
        step.preempted.append(victim)
        step.decisions.append(("preempted", victim, 0))

    def unschedule(self, step: StepPlan, request: Request) -> None:
        """Take back what this step was to compute of a request."""
        for i, part in enumerate(step.slices):
            if part.request is request:
                del step.slices[i]
                step.budget += part.num_tokens
                request.num_computed_tokens = part.num_computed_tokens
                request.num_in_flight_tokens -= part.emits
                if self.pool.prefix_caching:
                    self.pool.withdraw(request, min(part.num_computed_tokens, request.num_known_tokens))
                return

    def finish(self, request: Request) -> None:
        """A request has its last token: it leaves `running`."""
        self.running.remove(request)
        self.left(request)

    def left(self, request: Request) -> None:
        """A finished request has left: its blocks are free."""
        self.pool.release(request)
        self.pool.forget(request)

    def decodes_as_priced(self, num_decodes: int, context: int, max_context: int) -> tuple[int, int, int]:
        """What a step of these decodes costs as: more where finished requests keep a padded slot."""
        return num_decodes, context, max_context

    def advanced(self, num_steps: int) -> None:  # noqa: B027 - nothing to do for most
        """So many steps of hidden decodes alone have been scheduled."""

    def _take_result(self, part: Slice) -> bool:
        request = part.request
        was_preempted = request.num_preemptions != part.num_preemptions
        if not was_preempted and self.pool.prefix_caching:
            self.pool.publish(request, part.num_computed_tokens + part.num_tokens)
        if not part.emits:
            return False
        request.num_generated_tokens += 1
        if not was_preempted:
            request.num_in_flight_tokens -= 1
        if request.num_generated_tokens < request.num_output_tokens:
            return False
        request.state = RequestState.FINISHED
        if was_preempted:
            self.waiting.remove(request)
            self.left(request)
        else:
            self.finish(request)
        return True
