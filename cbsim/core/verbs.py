"""What a scheduler's rules are made of: schedule, admit, preempt, and the results of a step.

`self` is a `Replica`, `step` a `STEP` under way, `request` a `REQUEST`. A rule may look at all of them and
changes them only through these verbs.
"""

from __future__ import annotations

from typing import Any

from cbsim.base.binding import apart
from cbsim.core.drafts import count_drafts, num_accepted
from cbsim.core.layout import (
    ADMITTED,
    ADMITTED_TOO_MANY,
    CHEAPER,
    DECODE_STAGE,
    FAIR,
    FINISHED,
    NO_CONNECTOR,
    NOBODY_WAITS,
    PREEMPTED,
    PREEMPTED_NOW,
    PRODUCER,
    RECOMPUTE,
    REMOTE,
    RESUMED,
    RUNNING,
    SCHEDULED_TOO_MUCH,
    WAITING,
)
from cbsim.core.pool import (
    adopt,
    blocks_for,
    fail,
    num_known_tokens,
    publish,
    release,
    store_computed,
    withdraw,
)
from cbsim.core.transfers import keeps_blocks
from cbsim.core.waiting_queue import leave_queue, owe_no_more, push, served

NOT_LOOKED_UP = -1


def is_prefilling(request: Any) -> bool:
    """Whether prompt (or, after a preemption, prompt and answer) tokens are still to be computed."""
    return request.num_computed_tokens < request.prefill_until


def num_wanted(request: Any) -> int:
    """Tokens the request could compute now: those known, in flight or drafted, less those computed.

    0 if it will have its last token when the steps under way end, even if they accept no draft.
    """
    in_flight = request.num_in_flight_tokens
    # Computed tokens of its answer; less than none in its prompt.
    num_answered = request.num_computed_tokens - request.num_prompt_tokens
    if in_flight and num_answered + 2 - in_flight >= request.num_output_tokens:
        return 0
    num_left = request.num_generated_tokens + in_flight + request.num_drafts - num_answered
    # Less than none if drafts are in flight whose results alone tell what comes next.
    return num_left if num_left > 0 else 0


def schedule(self: Any, step: Any, request: Any, num_tokens: int) -> None:
    """Let a running request compute `num_tokens` in this step. Its blocks must be there already.

    Tokens beyond those known or in flight are drafts, which the step verifies.
    """
    own, config, in_flight = self.own, self.config, request.num_in_flight_tokens
    computed, num_taken = request.num_computed_tokens, num_tokens + config.num_extra_slots
    end = computed + num_tokens
    # Computed tokens of its answer, as in `num_wanted`.
    num_answered = end - request.num_prompt_tokens
    num_drafts = num_answered - request.num_generated_tokens - in_flight
    if num_tokens <= 0 or num_drafts > request.num_drafts or num_taken > step.budget:
        num_left = num_tokens + request.num_drafts - num_drafts
        fail(self, SCHEDULED_TOO_MUCH, request, num_tokens, num_left, step.budget)
        # Whoever goes on as long as the budget lasts comes to an end.
        step.budget = 0
        return
    emits = 1
    if num_drafts < 0:
        emits = num_drafts = 0
    part = self.slices[step.place][step.num_slices]
    part.request = request.index
    part.num_tokens = num_tokens
    part.num_computed_tokens = computed
    part.is_prefill = is_prefilling(request)
    part.emits = emits
    part.num_drafts = num_drafts
    part.num_accepted = part.is_padded = 0
    step.num_slices += 1
    step.budget -= num_taken
    if step.skips_drafts and num_answered >= 0:
        num_to_come = 2 if in_flight else 1
        if request.num_generated_tokens + num_to_come < request.num_output_tokens:
            step.skips_drafts = 0
    request.num_computed_tokens = end
    request.num_launched_tokens += num_tokens
    request.samples = emits
    request.last_call = step.call
    if emits and config.async_scheduling:
        request.num_in_flight_tokens = in_flight + 1 + num_drafts
        request.num_drafts = config.num_speculative_tokens
        if config.num_stages > 1:
            request.resumes_at_call = own.num_calls + config.num_stages
    else:
        request.num_drafts = 0
    if own.prefix_caching:
        publish(self, request, end)


def admit(self: Any, step: Any, request: Any, num_found: int = NOT_LOOKED_UP) -> None:
    """Move a request from the queue to the end of the running list; `num_found` of its tokens are cached."""
    own = self.own
    if own.num_running >= self.config.max_num_seqs:
        fail(self, ADMITTED_TOO_MANY, request, 1, own.num_running, step.budget)
        step.budget = 0
        leave_queue(self, request)
        return
    leave_queue(self, request)
    num_cached = 0
    if num_found != NOT_LOOKED_UP:
        num_cached = num_found
        find(self, request, num_cached)
    start_running(self, step, request, num_cached)


def find(self: Any, request: Any, num_cached: int) -> None:
    """Let a request that leaves the queue share the blocks with its first `num_cached` tokens."""
    own = self.own
    adopt(self, request, num_cached)
    # What a preempted request finds of its own is no hit of the cache, as in vLLM's statistics.
    if own.prefix_caching and request.num_preemptions == 0:
        own.num_tokens_queried += num_known_tokens(request)
        own.num_tokens_hit += num_cached


def start_running(self: Any, step: Any, request: Any, num_computed: int) -> None:
    """Add a request, whose first `num_computed` tokens are there, to the end of the running list."""
    own = self.own
    step.waiting_for = NOBODY_WAITS
    if request.state == WAITING and self.config.policy == FAIR:
        served(self, request, request.num_prompt_tokens)
    self.running[own.num_running] = request.index
    own.num_running += 1
    own.num_kv_tokens += num_computed
    request.num_computed_tokens = num_computed
    request.prefill_until = num_known_tokens(request)
    if request.stage == DECODE_STAGE and request.state == WAITING:
        request.prefill_until -= 1
    request.samples = 0
    if request.was_passed_over:
        request.was_passed_over = 0
        own.num_passed_over -= 1
    if request.state == PREEMPTED:
        own.num_tokens_recomputed += max(0, request.num_lost_tokens - num_computed)
        decided(self, step, RESUMED, request, num_computed)
    else:
        request.num_cached_tokens = num_computed
        request.first_scheduled_at_s = step.now
        decided(self, step, ADMITTED, request, num_computed)
    request.waited_s += step.now - request.waiting_since_s
    request.state = RUNNING


def decided(self: Any, step: Any, event: int, request: Any, num_tokens: int) -> None:
    """Add a decision to the events; `loop.begin` fills in its step, if the call makes one."""
    lengths = self.log.lengths
    row = self.log.events[lengths.events]
    row.time_s = step.now
    row.replica = self.own.replica
    row.step = -1
    row.request = request.index
    row.event = event
    row.num_tokens = num_tokens
    lengths.events += 1
    step.num_decisions += 1


@apart
def preempt(self: Any, step: Any, victim: Any) -> None:
    """Take all blocks from a running request and send it back to the waiting queue.

    If it had been scheduled in this very step, its entry leaves the step and its tokens the budget. Its
    progress is lost, unless its KV moves to host memory.
    """
    own = self.own
    remove_running(self, victim)
    unschedule(self, step, victim)
    num_computed = victim.num_computed_tokens
    # With its last token in flight it ends from the queue, without its KV. What drafts in flight come to
    # nobody knows.
    num_needed = min(num_computed, num_known_tokens(victim)) if num_wanted(victim) else 0
    own.num_kv_tokens -= num_computed
    release(self, victim)
    victim.num_in_flight_tokens = victim.num_launched_tokens = victim.num_drafts = 0
    if drops_results(self):
        victim.last_call = 0
    own.num_preemptions += 1
    victim.place_in_line = -own.num_preemptions
    victim.num_preemptions += 1
    victim.preempted_in_call = own.num_calls
    victim.state = PREEMPTED
    victim.waiting_since_s = step.now
    push(self, victim)
    step.num_preempted += 1
    decided(self, step, PREEMPTED_NOW, victim, 0)
    if takes_to_host(self, num_needed):
        move_out(self, victim, blocks_for(self, num_needed))
        victim.num_computed_tokens = num_needed
        victim.num_lost_tokens = 0
    else:
        victim.num_lost_tokens = num_computed
        victim.num_computed_tokens = 0


@apart
def unschedule(self: Any, step: Any, request: Any) -> None:
    """Take back what this step was to compute of a request."""
    slices = self.slices[step.place]
    for place in range(step.num_slices):
        part = slices[place]
        if part.request == request.index:
            step.budget += part.num_tokens + self.config.num_extra_slots
            request.num_computed_tokens = part.num_computed_tokens
            request.num_launched_tokens -= part.num_tokens
            request.last_call = call_under_way(self, request)
            withdraw(self, request, part.num_computed_tokens)
            for later in range(place + 1, step.num_slices):
                copy_slice(slices[later], slices[later - 1])
            step.num_slices -= 1
            return


def call_under_way(self: Any, request: Any) -> int:
    """The call that decided the last step under way, before this one, that holds a request; 0 for none."""
    last = 0
    for step in self.under_way:
        for part in self.slices[step.place][: step.num_slices]:
            if part.request == request.index and last < step.call < self.own.num_calls:
                last = step.call
    return int(last)


def is_in_flight(self: Any, request: Any) -> bool:
    """Whether a step under way holds a request."""
    return bool(request.last_call > self.own.last_call)


def copy_slice(source: Any, target: Any) -> None:
    """Field by field: an assignment of the whole would name the same object in a list."""
    target.request = source.request
    target.num_tokens = source.num_tokens
    target.num_computed_tokens = source.num_computed_tokens
    target.is_prefill = source.is_prefill
    target.emits = source.emits
    target.num_drafts = source.num_drafts
    target.is_padded = source.is_padded


def remove_running(self: Any, request: Any) -> None:
    """A request leaves the running list; the others keep their order."""
    own, place = self.own, 0
    while self.running[place] != request.index:
        place += 1
    own.num_running -= 1
    for later in range(place, own.num_running):
        self.running[later] = self.running[later + 1]


def drops_results(self: Any) -> bool:
    """Whether nothing comes out for a request that was preempted while a step was under way.

    So on a replica that only hands KV over, with more than one step under way (vLLM's P/D connectors).
    """
    config = self.config
    return bool(config.connector == REMOTE and config.role == PRODUCER and self.own.num_in_flight > 1)


def take_result(self: Any, step: Any, request: Any, part: Any) -> int:
    """A request's slice has run: settle which of its drafts were right and how many tokens come out."""
    own, config = self.own, self.config
    if request.state >= FINISHED:
        return 0
    num_emitted = part.emits
    num_drafts = part.num_drafts if num_emitted else 0
    num_generated = request.num_generated_tokens
    was_preempted = request.preempted_in_call > step.call
    if num_drafts:
        part.num_accepted = num_accepted(self, request, part)
        num_emitted = min(1 + part.num_accepted, request.num_output_tokens - num_generated)
    if was_preempted:
        if drops_results(self):
            num_emitted = 0
    else:
        request.num_launched_tokens -= part.num_tokens
        if num_drafts and request.num_computed_tokens > 0:
            num_rejected = num_drafts - part.num_accepted
            request.num_computed_tokens -= num_rejected
            own.num_kv_tokens -= num_rejected
        if part.emits and config.async_scheduling:
            request.num_in_flight_tokens -= 1 + num_drafts
    if num_emitted:
        if part.is_prefill:
            owe_no_more(self, request)
        num_generated += num_emitted
        request.num_generated_tokens = num_generated
        if config.policy == FAIR:
            served(self, request, num_emitted)
    if own.prefix_caching and not was_preempted:
        publish(self, request, request.num_computed_tokens - request.num_launched_tokens)
        store_computed(self, request)
    if config.num_speculative_tokens and num_emitted and not (was_preempted or config.async_scheduling):
        count_drafts(self, request)
    return num_emitted


def finish(self: Any, step: Any, request: Any) -> None:
    """A request has got its last token with a step, running or as it waited after a preemption."""
    if request.state == PREEMPTED:
        leave_queue(self, request)
    else:
        remove_running(self, request)
        self.own.num_kv_tokens -= request.num_computed_tokens
    request.state = FINISHED
    if self.config.connector == NO_CONNECTOR or not keeps_blocks(self, request, step.end_s):
        left(self, request)


def left(self: Any, request: Any) -> None:
    """A finished request has left: its blocks are free."""
    release(self, request)


# Host memory for the KV of preempted requests. A move is ordered after the step that is running, as a copy on
# the same stream: the blocks on the GPU are free for the next step at once, which begins when the moves
# decided with it are done. Both directions share that stream.


def move_s(self: Any, num_blocks: int) -> float:
    """Seconds to move `num_blocks` blocks of a request between the GPU and host memory, one way."""
    config = self.config
    return config.swap_latency_s + num_blocks * config.block_bytes / config.swap_bytes_per_s


def takes_to_host(self: Any, num_tokens: int) -> bool:
    """Whether KV of `num_tokens` tokens moves to host memory rather than be computed again.

    `cheaper` compares the seconds of two moves with those of a step that computes these tokens alone.
    """
    preemption = self.config.preemption
    if preemption == RECOMPUTE or num_tokens == 0:
        return False
    num_blocks = blocks_for(self, num_tokens)
    if preemption == CHEAPER and self.prefill_s[num_tokens] <= 2 * move_s(self, num_blocks):
        return False
    has_room = self.own.num_swapped_blocks + num_blocks <= self.config.num_swap_blocks
    if not has_room:
        self.own.num_turned_away += 1
    return has_room


def move_out(self: Any, request: Any, num_blocks: int) -> None:
    """A request's blocks go to host memory."""
    own = self.own
    request.num_swapped_blocks = num_blocks
    own.num_swapped_blocks += num_blocks
    own.num_moved_out += 1
    own.unspent_transfer_s += move_s(self, num_blocks)


def move_in(self: Any, request: Any) -> None:
    """A request's KV comes back to the GPU, where the request has blocks again."""
    own = self.own
    own.num_swapped_blocks -= request.num_swapped_blocks
    own.unspent_transfer_s += move_s(self, request.num_swapped_blocks)
    request.num_swapped_blocks = 0
