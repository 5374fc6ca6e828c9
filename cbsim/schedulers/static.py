"""Rung 1: static (request-level) batching."""

from __future__ import annotations

from math import inf
from typing import Any

from pydantic import Field

from cbsim.config.section import ComponentConfig
from cbsim.core.layout import FITS, LONGER_THAN_SLOT
from cbsim.core.pool import allocate, release
from cbsim.core.verbs import admit, num_wanted, schedule
from cbsim.core.waiting_queue import head_of_queue
from cbsim.schedulers.scheduler import Means, Numbers, Scheduler, SchedulerConfig, numbers_of


class StaticConfig(SchedulerConfig):
    """Request-level batches, as served before Orca (OSDI'22)."""

    max_num_seqs: int = Field(default=32, ge=1)
    """Most requests a batch."""
    batch_timeout_s: float = Field(default=0.0, ge=0)
    """How long the oldest waiting request waits, at most, for the batch to fill while the replica is idle."""
    max_model_len: int | None = Field(default=None, ge=1)
    """The longest possible request, prompt and answer, tokens: so much KV cache is reserved for every slot.
    Null takes the model's, or what the KV cache holds if that is less."""

    def kv_at_admission(self, num_blocks: int, block_size: int) -> list[str]:
        """See `SchedulerConfig.kv_at_admission`."""
        return ["the longest request reserved for every slot"]


def rejects(self: Any, request: Any) -> int:
    """A request longer than a slot can never run."""
    num_tokens = request.num_prompt_tokens + request.num_output_tokens
    return LONGER_THAN_SLOT if num_tokens > self.config.max_model_len else FITS


def decide(self: Any, step: Any) -> None:
    """Start a batch if none runs, else decode one token for every slot."""
    if self.own.num_batch:
        decode_batch(self, step)
    elif is_batch_ready(self, step.now):
        start_batch(self, step)


def wake_at_s(self: Any) -> float:
    """When the oldest waiting request has waited long enough."""
    if self.own.num_waiting == 0 or self.own.num_batch:
        return inf
    oldest = self.requests[head_of_queue(self, 0.0)]
    return oldest.arrival_s + self.config.batch_timeout_s


def is_batch_ready(self: Any, now: float) -> bool:
    """Whether the queue fills a batch, or its oldest request has waited long enough."""
    if self.own.num_waiting == 0:
        return False
    return self.own.num_waiting >= self.config.num_slots or now >= wake_at_s(self)


def start_batch(self: Any, step: Any) -> None:
    """Whole prompts, padded to the longest."""
    own = self.own
    longest = 0
    while own.num_batch < self.config.num_slots and own.num_waiting:
        request = self.requests[head_of_queue(self, step.now)]
        admit(self, step, request)
        allocate(self, request, self.config.blocks_per_slot)
        schedule(self, step, request, request.num_prompt_tokens)
        self.order[own.num_batch] = request.index
        own.num_batch += 1
        longest = max(longest, request.num_prompt_tokens)
    own.num_padded_tokens = longest


def decode_batch(self: Any, step: Any) -> None:
    """A token for each that is not done."""
    for place in range(self.own.num_running):
        request = self.requests[self.running[place]]
        if num_wanted(request):
            schedule(self, step, request, 1)


def pad(self: Any, step: Any) -> None:
    """Every slot of the batch costs as the longest: its prompt, or the tokens decoded since.

    A request that comes with an answer begun elsewhere computes it token by token, as if it decoded.
    """
    own, shape = self.own, self.shape
    num_slots, length = own.num_batch, own.num_padded_tokens
    if step.num_decisions:
        for place in range(num_slots):
            self.chunks[place].num_tokens = length
            self.chunks[place].num_computed_tokens = 0
        step.num_padding_tokens = num_slots * length - shape.num_prefill_tokens
        shape.num_chunks = shape.num_finishing_chunks = num_slots
        shape.num_prefill_tokens = num_slots * length
        return
    own.num_padded_tokens = length + 1
    step.num_padding_tokens = num_slots - step.num_slices
    shape.num_chunks = shape.num_finishing_chunks = shape.num_prefill_tokens = 0
    shape.num_decodes = num_slots
    shape.decode_context = num_slots * (length + 1)
    shape.max_decode_context = length + 1
    shape.windowed_context = num_slots * min(length + 1, self.config.window)


def left(self: Any, request: Any) -> None:
    """A finished request keeps its slot; the last one to finish frees them all."""
    own = self.own
    if own.num_running == 0:
        for place in range(own.num_batch):
            release(self, self.requests[self.order[place]])
        own.num_batch = 0


class StaticScheduler(Scheduler):
    """A batch starts together and ends together.

    Prompts are padded to the longest of the batch; a finished request keeps its padded slot, in time and in
    KV cache, until the whole batch is done. The KV cache is contiguous: every slot reserves the longest
    possible request.
    """

    Config = StaticConfig
    reserves_ahead = True
    rejects = rejects
    decide = decide
    wake_at_s = wake_at_s
    pad = pad
    left = left

    @classmethod
    def numbers(cls, config: ComponentConfig, means: Means) -> Numbers:
        """With the size of a slot and how many there are."""
        assert isinstance(config, StaticConfig)
        pool_tokens = means.num_blocks * means.block_size
        max_model_len = min(config.max_model_len or means.max_model_len, pool_tokens)
        blocks_per_slot = -(-max_model_len // means.block_size)
        return {
            **numbers_of(config),
            "max_model_len": max_model_len,
            "blocks_per_slot": blocks_per_slot,
            "num_slots": min(config.max_num_seqs, means.num_blocks // blocks_per_slot),
        }
