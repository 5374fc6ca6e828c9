"""Rung 1: static (request-level) batching."""

from __future__ import annotations

from pydantic import Field

from cbsim.cost.cost_model import StepShape
from cbsim.schedulers.base import Resources, Scheduler, SchedulerConfig, StepPlan
from cbsim.workload.request import Request


class StaticConfig(SchedulerConfig):
    """Request-level batches, as served before Orca (OSDI'22)."""

    max_num_seqs: int = Field(default=32, ge=1)
    """Most requests a batch."""
    batch_timeout_s: float = Field(default=0.0, ge=0)
    """How long the oldest waiting request waits, at most, for the batch to fill while the engine is idle."""
    max_model_len: int | None = Field(default=None, ge=1)
    """The longest possible request, prompt and answer, tokens: so much KV cache is reserved for every slot.
    Null takes the model's, or what the KV cache holds if that is less."""


class StaticScheduler(Scheduler):
    """A batch starts together and ends together.

    Prompts are padded to the longest of the batch; a finished request keeps its padded slot, in time and in
    KV cache, until the whole batch is done. The KV cache is contiguous: every slot reserves the longest
    possible request.
    """

    Config = StaticConfig
    reserves_ahead = True
    can_fast_forward = True

    def __init__(self, config: StaticConfig, resources: Resources) -> None:
        super().__init__(config, resources)
        pool_tokens = self.pool.num_blocks * self.pool.block_size
        self.max_model_len = min(config.max_model_len or resources.max_model_len, pool_tokens)
        self.blocks_per_slot = self.pool.blocks_for(self.max_model_len)
        self.num_slots = min(config.max_num_seqs, self.pool.num_blocks // self.blocks_per_slot)
        self.timeout_s = config.batch_timeout_s
        self.batch: list[Request] = []
        """Every request of the running batch, finished ones included."""
        self.num_padded_tokens = 0
        """Length of every slot so far: the longest prompt and the tokens decoded since."""

    def rejection(self, request: Request) -> str | None:
        """A request longer than a slot can never run."""
        num_tokens = request.num_prompt_tokens + request.num_output_tokens
        if num_tokens > self.max_model_len:
            return f"{num_tokens} tokens exceed the longest possible request, {self.max_model_len} tokens"
        return None

    def decide(self, step: StepPlan) -> None:
        """Start a batch if none runs, else decode one token for every slot."""
        if self.batch:
            self._decode(step)
        elif self._batch_is_ready(step.now):
            self._start(step)

    def wake_at_s(self) -> float | None:
        """When the oldest waiting request has waited long enough."""
        oldest = self.waiting.head(0.0)
        return None if oldest is None or self.batch else oldest.arrival_s + self.timeout_s

    def left(self, request: Request) -> None:
        """A finished request keeps its slot; the last one to finish frees them all."""
        if self.num_running == 0:
            for member in self.batch:
                self.pool.release(member)
            self.batch = []

    def decodes_as_priced(self, num_decodes: int, context: int, max_context: int) -> tuple[int, int, int]:
        """Every slot of the batch at its padded length."""
        length = self.num_padded_tokens + 1
        return len(self.batch), len(self.batch) * length, length

    def advanced(self, num_steps: int) -> None:
        """Every slot has grown."""
        self.num_padded_tokens += num_steps

    def _batch_is_ready(self, now: float) -> bool:
        oldest = self.waiting.head(now)
        if oldest is None:
            return False
        return len(self.waiting) >= self.num_slots or now >= oldest.arrival_s + self.timeout_s

    def _start(self, step: StepPlan) -> None:
        while len(self.batch) < self.num_slots and (request := self.waiting.head(step.now)):
            self.admit(step, request)
            self.pool.allocate(request, self.blocks_per_slot)
            self.schedule(step, request, request.num_prompt_tokens)
            self.batch.append(request)
        num_slots = len(self.batch)
        longest = self.num_padded_tokens = max(request.num_prompt_tokens for request in self.batch)
        step.shape = StepShape(((longest, 0),) * num_slots, num_slots, 0, 0, 0)
        step.num_padding_tokens = num_slots * longest - sum(part.num_tokens for part in step.slices)

    def _decode(self, step: StepPlan) -> None:
        for request in self.running:
            if self.num_wanted(request):
                self.schedule(step, request, 1)
        if step.slices:
            num_slots, context, length = self.decodes_as_priced(0, 0, 0)
            step.shape = StepShape((), 0, num_slots, context, length)
            step.num_padding_tokens = num_slots - len(step.slices)
            self.advanced(1)
