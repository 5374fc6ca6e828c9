"""Rung 4: KV blocks on demand, and preemption when they run out."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from math import inf
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationInfo, field_validator

from cbsim.base.binding import apart
from cbsim.base.units import GIB, GIGA
from cbsim.config.section import ComponentConfig
from cbsim.core.layout import NOBODY, WAITING
from cbsim.core.pool import grow, leave_behind, num_freed_by, num_known_tokens
from cbsim.core.verbs import admit, is_prefilling, move_in, preempt, schedule
from cbsim.core.waiting_queue import head_of_queue, is_aged, is_less_urgent
from cbsim.schedulers.admission import admit_waiting as paged_admit_waiting
from cbsim.schedulers.admission import finds_blocks, first_chunk, num_blocks_missing
from cbsim.schedulers.admission import try_admit as paged_try_admit
from cbsim.schedulers.paged import (
    PagedConfig,
    PagedScheduler,
    choose_among,
)
from cbsim.schedulers.scheduler import Means, Numbers, SchedulerConfig, numbers_of

Policy = Literal["fcfs", "priority", "sjf", "edf", "fair"]


class OrderConfig(SchedulerConfig):
    """In which order waiting requests are admitted."""

    policy: Policy = "fcfs"
    """Who is admitted first: by arrival, by `priority` (smaller first), the shortest job, the earliest
    deadline (`deadline_s` after arrival), or the user who was served the fewest tokens (VTC, OSDI'24)."""
    length_knowledge: Literal["oracle", "predicted", "prompt_only"] = "oracle"
    """What `sjf` goes by: the answer's true length (an upper bound that no engine reaches), that length with
    an error, or the prompt's length."""
    prediction_error: float | None = Field(default=None, ge=0, validate_default=True)
    """Relative error of `predicted`: sigma of the lognormal factor between predicted and true length."""
    aging_s: float | None = Field(default=None, ge=0)
    """Who has waited longer than this in all, seconds, goes before all that have not, in order of arrival,
    and is not preempted while one of them runs; null turns it off."""

    @field_validator("length_knowledge")
    @classmethod
    def _serves_sjf(cls, value: str, info: ValidationInfo) -> str:
        policy = info.data.get("policy", "sjf")
        if value != cls.model_fields["length_knowledge"].default and policy != "sjf":
            raise ValueError(f"got '{value}', which means nothing with policy: {policy}; set policy: sjf")
        return value

    @field_validator("prediction_error")
    @classmethod
    def _serves_prediction(cls, value: float | None, info: ValidationInfo) -> float | None:
        if "length_knowledge" not in info.data:
            return value
        is_predicted = info.data["length_knowledge"] == "predicted"
        if value is not None and not is_predicted:
            raise ValueError(f"got {value:g}, which means nothing without length_knowledge: predicted")
        if value is None and is_predicted:
            raise ValueError("missing; length_knowledge: predicted needs it, for example 0.5")
        return value


class SwapConfig(SchedulerConfig):
    """What becomes of a preempted request's KV."""

    preemption: Literal["recompute", "swap", "cheaper"] = "recompute"
    """What happens to a victim's KV: it is computed again later, moved to host memory and back, or whichever
    takes less time by the cost model."""
    swap_space_gib: float = Field(default=4.0, gt=0)
    """Host memory of a replica for swapped KV blocks, GiB; when it is full, victims are recomputed."""
    swap_bandwidth_gb_s: float | None = Field(default=None, gt=0)
    """Bandwidth between the GPUs of a replica and host memory, one way, GB/s (1e9 bytes a second); null takes
    the GPU's `host_link_gb_s`."""
    swap_latency_s: float = Field(default=1e-5, ge=0)
    """Seconds before a request's blocks begin to move, each way."""

    @field_validator("swap_space_gib", "swap_bandwidth_gb_s", "swap_latency_s")
    @classmethod
    def _serves_swap(cls, value: float | None, info: ValidationInfo) -> float | None:
        default = cls.model_fields[str(info.field_name)].default
        if value != default and info.data.get("preemption") == "recompute":
            raise ValueError(
                f"got {value:g}, which means nothing with preemption: recompute; expected swap or cheaper"
            )
        return value


LENGTH_STREAM = 0x6C656E67
"""Spawn key of the random streams of predicted lengths."""


def length_z(seed: int, request_id: str) -> float:
    """A standard normal number of a request's own, whatever was drawn before.

    A predicted length is the true one times `exp(error * z)`: z comes from a stream keyed by the seed and the
    request's id, so that a prediction depends on nothing that the scheduler did before.
    """
    digest = hashlib.blake2b(request_id.encode(), digest_size=16).digest()
    key = (LENGTH_STREAM, int.from_bytes(digest, "little"))
    return float(np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key)).standard_normal())


class PreemptiveConfig(SwapConfig, OrderConfig, PagedConfig):
    """Rung 3 on a paged KV cache, with a choice of queue orders, victims and ways to preempt."""

    policy: Policy = "fcfs"
    """Who is admitted first: by arrival, by `priority` (smaller first), the shortest job, the earliest
    deadline (`deadline_s` after arrival), or the user who was served the fewest tokens (VTC, OSDI'24)."""
    chunk_size: int = Field(default=512, ge=0)
    """Most tokens of one request a step; 0 is no cap."""
    victim: Literal["last_admitted", "lowest_priority", "most_blocks", "least_progress"] | None = None
    """Whom to preempt; null takes the last by the policy (under `fcfs` the last admitted)."""
    preempt_on_arrival: bool = False
    """Whether a newcomer that lacks a slot or blocks may take those of less urgent running requests."""

    @field_validator("preempt_on_arrival")
    @classmethod
    def _has_lasting_order(cls, value: bool, info: ValidationInfo) -> bool:
        policy = info.data.get("policy")
        if value and policy in ("fcfs", "fair"):
            reason = (
                "no newcomer is more urgent than those before it"
                if policy == "fcfs"
                else "users' counters overtake each other, so newcomers would evict one another"
            )
            raise ValueError(f"got true, but with policy: {policy} {reason}; expected priority, sjf or edf")
        return value


def running_order(self: Any) -> int:
    """Fill `order` with decodes before prompts, each in order of admission; how many."""
    num_running, num_ordered = self.own.num_running, 0
    for prompts in range(2):
        for place in range(num_running):
            if is_prefilling(self.requests[self.running[place]]) == prompts:
                self.order[num_ordered] = self.running[place]
                num_ordered += 1
    return num_ordered


def ends_at_own_preemption(self: Any) -> bool:
    """Others may still want tokens, as prompts are served last."""
    return False


def admit_waiting(self: Any, step: Any, cap: int) -> None:
    """Admit from the head of the queue; with `preempt_on_arrival`, also in place of less urgent requests."""
    goes_on = True
    while goes_on:
        paged_admit_waiting(self, step, cap)
        goes_on = self.config.preempt_on_arrival and evict_for_head(self, step, cap)


def try_admit(self: Any, step: Any, request: Any, cap: int) -> bool:
    """Admit the head of the queue, with its blocks from host memory if they are there."""
    if request.num_preemptions and request.preempted_in_call == self.own.num_calls:
        return False
    if request.num_swapped_blocks == 0:
        return paged_try_admit(self, step, request, cap)
    num_computed, prefill_until = request.num_computed_tokens, request.prefill_until
    num_tokens = first_chunk(self, step, request, num_computed, cap)
    num_resident = num_computed + num_tokens + self.config.num_lookahead_tokens
    if num_tokens == 0 or not finds_blocks(self, step, request, num_resident, 0, 0):
        return False
    admit(self, step, request)
    request.num_computed_tokens = num_computed
    request.prefill_until = prefill_until
    self.own.num_kv_tokens += num_computed
    leave_behind(self, request, num_computed)
    grow(self, request, num_resident)
    move_in(self, request)
    schedule(self, step, request, num_tokens)
    return True


@apart
def evict_for_head(self: Any, step: Any, cap: int) -> bool:
    """Preempt one less urgent request for the head of the queue, if enough of them run to let it in.

    Only a request that never ran may do this, and nobody returns in the step that evicted it: so each
    eviction serves a first admission, and requests never evict one another in turns.
    """
    index = head_of_queue(self, step.now)
    if index == NOBODY or self.requests[index].state != WAITING:
        return False
    head = self.requests[index]
    num_tokens = min(num_known_tokens(head), cap)
    if step.budget == 0 or (num_tokens > step.budget and not self.config.enable_chunked_prefill):
        return False
    num_less_urgent = 0
    for place in range(self.own.num_running):
        request = self.requests[self.running[place]]
        if is_less_urgent(self, request, head) and not is_aged(self, request, step.now):
            self.candidates[num_less_urgent] = request.index
            num_less_urgent += 1
    if num_less_urgent == 0:
        return False
    if num_blocks_missing(self, head, num_tokens, 0, 0) > num_freed_by(self, num_less_urgent):
        return False
    preempt(self, step, self.requests[choose_among(self, num_less_urgent)])
    return True


class PreemptiveScheduler(PagedScheduler):
    """Decodes first, then chunks; blocks are taken as tokens need them, and victims come back later.

    Some request is always safe from preemption: the first by the policy's order, by admission or by progress,
    as the victim rule has it. So somebody always comes to an end.
    """

    Config = PreemptiveConfig
    running_order = running_order
    ends_at_own_preemption = ends_at_own_preemption
    admit_waiting = admit_waiting
    try_admit = try_admit

    @classmethod
    def numbers(cls, config: ComponentConfig, means: Means) -> Numbers:
        """With host memory in blocks and the link to it."""
        assert isinstance(config, PreemptiveConfig)
        numbers = super().numbers(config, means)
        bandwidth_gb_s = config.swap_bandwidth_gb_s
        return {
            **numbers,
            "victim": numbers["victim"] if config.victim is None else numbers_of(config)["victim"],
            "aging_s": inf if config.aging_s is None else config.aging_s,
            "block_bytes": means.block_bytes,
            "num_swap_blocks": int(config.swap_space_gib * GIB / means.block_bytes),
            "swap_bytes_per_s": (
                means.host_link_bytes_per_s if bandwidth_gb_s is None else bandwidth_gb_s * GIGA
            ),
        }

    @classmethod
    def job_length(cls, config: ComponentConfig, seed: int) -> Callable[[str, int, int], float] | None:
        """What `sjf` may know of the answers' lengths."""
        assert isinstance(config, PreemptiveConfig)
        if config.policy != "sjf" or config.length_knowledge == "oracle":
            return None
        if config.length_knowledge == "prompt_only":
            return lambda request_id, num_prompt_tokens, num_output_tokens: num_prompt_tokens
        error = config.prediction_error or 0.0
        return lambda request_id, num_prompt_tokens, num_output_tokens: (
            num_output_tokens * math.exp(error * length_z(seed, request_id))
        )

    @classmethod
    def notes(cls, config: ComponentConfig, requests: Any, own: NDArray[Any]) -> list[str]:
        """Also how often host memory was too full."""
        notes = super().notes(config, requests, own)
        for num_turned_away, num_moved_out in {
            (int(replica["num_turned_away"]), int(replica["num_moved_out"])): None for replica in own
        }:
            if num_turned_away:
                notes.append(
                    f"host memory was too full for {num_turned_away} preempted requests, which were "
                    f"recomputed; {num_moved_out} were swapped"
                )
        return notes
