"""Admission to a paged KV cache: the head of the queue with a first chunk, or with KV from elsewhere."""

from __future__ import annotations

from math import inf
from typing import Any

from cbsim.base.binding import apart
from cbsim.core.layout import (
    FCFS,
    KV_BLOCKS,
    LOAD_STARTED,
    LOADING,
    NOBODY,
    READ,
    READING,
    READY,
)
from cbsim.core.pool import (
    adopt,
    blocks_for,
    find_prefix,
    grow,
    leave_behind,
    num_known_tokens,
    num_missing,
    publish,
    release,
)
from cbsim.core.tiers import load, num_in_tiers, read_s
from cbsim.core.transfers import (
    add_transfer,
    is_elsewhere,
    is_loaded_ahead,
    num_external,
    remove_transfer,
)
from cbsim.core.verbs import decided, find, is_in_flight, schedule, start_running
from cbsim.core.waiting_queue import head_of_queue, is_less_urgent, leave_queue, push


def admit_waiting(self: Any, step: Any, cap: int) -> None:
    """Admit from the head of the queue while slots, budget and blocks last; nobody overtakes the head.

    A request for which steps under way still compute is passed over and keeps its place.
    """
    own = self.own
    num_passed, goes_on = 0, own.num_waiting > 0 or own.num_holding > 0
    while goes_on and step.budget > self.config.num_extra_slots and has_slot(self):
        head = next_to_admit(self, step)
        if head == NOBODY:
            goes_on = False
        elif is_in_flight(self, self.requests[head]):
            request = self.requests[head]
            leave_queue(self, request)
            self.candidates[num_passed] = head
            num_passed += 1
        else:
            goes_on = try_admit(self, step, self.requests[head], cap)
    for place in range(num_passed):
        pass_over(self, self.requests[self.candidates[place]])


def has_slot(self: Any) -> bool:
    """Whether another request may run."""
    return bool(self.own.num_running < self.config.max_num_seqs)


def pass_over(self: Any, request: Any) -> None:
    """A request that was passed over goes back to its place in the queue."""
    push(self, request)


def next_to_admit(self: Any, step: Any) -> int:
    """The request to be admitted next, `NOBODY` for none; whoever has loaded KV goes before the queue."""
    ready = next_ready(self) if self.own.num_holding else NOBODY
    return head_of_queue(self, step.now) if ready == NOBODY else ready


@apart
def next_ready(self: Any) -> int:
    """The request that has loaded KV and is to be admitted first, `NOBODY` for none."""
    ready = NOBODY
    for place in range(self.own.num_transfers):
        index = self.transfers[place]
        if self.extras[index].transfer == READY and (
            ready == NOBODY
            or (
                self.config.policy != FCFS
                and is_less_urgent(self, self.requests[ready], self.requests[index])
            )
        ):
            ready = index
    return int(ready)


def try_admit(self: Any, step: Any, request: Any, cap: int) -> bool:
    """Admit a request with its first chunk, or let it load KV; False if admission ends for this step."""
    num_found_free = num_elsewhere = 0
    num_local = num_loaded(self, request)
    is_new = num_local == 0
    if is_new:
        num_local, num_found_free = find_prefix(self, request)
        num_elsewhere = num_external(self, request, num_local)
        if num_elsewhere and is_loaded_ahead(self, request):
            return try_load(self, step, request, num_local, num_found_free, num_elsewhere)
    num_computed = num_local + num_elsewhere
    is_padded = may_pad(self, step, request, num_computed)
    num_tokens = first_chunk(self, step, request, num_computed, cap)
    if is_padded:
        num_tokens = 1 + self.config.num_speculative_tokens
        if num_tokens + self.config.num_extra_slots > step.budget:
            return False
    if num_tokens == 0 or holds_back(self, request, num_computed):
        return False
    num_resident = num_computed + num_tokens + self.config.num_lookahead_tokens
    if num_elsewhere:
        # What lies behind windows then needs no blocks.
        request.num_computed_tokens = num_computed
    if not finds_blocks(self, step, request, num_resident, num_local, num_found_free):
        if num_elsewhere:
            request.num_computed_tokens = 0
        return False
    leave_line(self, request)
    if is_new:
        find(self, request, num_local)
    start_running(self, step, request, num_computed)
    if num_elsewhere:
        read_tier(self, step, request, num_local, num_elsewhere)
    leave_behind(self, request, num_computed)
    grow(self, request, num_resident)
    if is_padded:
        request.num_drafts = self.config.num_speculative_tokens
    schedule(self, step, request, num_tokens)
    self.slices[step.place][step.num_slices - 1].is_padded = 1 if is_padded else 0
    return True


def first_chunk(self: Any, step: Any, request: Any, num_computed: int, cap: int) -> int:
    """Tokens that a request would compute if admitted now; 0 if they must stay whole and don't fit."""
    num_left = step.budget - self.config.num_extra_slots
    num_tokens = min(num_known_tokens(request) - num_computed, cap)
    if num_tokens > num_left and not self.config.enable_chunked_prefill:
        return 0
    return min(num_tokens, num_left)


def may_pad(self: Any, step: Any, request: Any, num_computed: int) -> bool:
    """Whether a request that lacks one token gets drafts that can't be right, so that all entries are equal.

    vLLM does so to keep the batch uniform, for one CUDA graph, if no prompt of a running request is computed.
    """
    if self.config.num_speculative_tokens == 0 or num_known_tokens(request) - num_computed != 1:
        return False
    return bool(not step.visits_prefill and (step.num_served or num_computed))


def holds_back(self: Any, request: Any, num_computed: int) -> bool:
    """Whether this step takes in no prompts: see `prefill_schedule_interval`."""
    return bool(self.own.holds_prefill and num_known_tokens(request) - num_computed > 1)


def finds_blocks(
    self: Any, step: Any, request: Any, num_tokens: int, num_found: int, num_found_free: int
) -> bool:
    """Whether a request finds its blocks; if not, that is what all others wait for."""
    if num_blocks_missing(self, request, num_tokens, num_found, num_found_free) <= 0:
        return True
    step.waiting_for = KV_BLOCKS
    return False


def num_blocks_missing(self: Any, request: Any, num_tokens: int, num_found: int, num_found_free: int) -> int:
    """Blocks missing to admit a request that is to hold KV of `num_tokens`; 0 or less if none.

    Its first `num_found` tokens are cached, `num_found_free` blocks of them held by nobody.
    """
    own, config = self.own, self.config
    num_needed = num_missing(self, request, num_tokens, num_found)
    if config.reserve_full_isl:
        num_whole = num_missing(self, request, num_known_tokens(request), num_found, True)
        num_needed = max(num_needed, num_whole)
    num_kept_free = config.num_watermark_blocks if own.num_running else 0
    return num_needed + num_found_free + num_kept_free - own.num_free


# KV from elsewhere


def is_loaded(self: Any, request: Any) -> bool:
    """Whether a request has loaded KV and waits for its first step."""
    return bool(self.own.num_holding and self.extras[request.index].transfer == READY)


@apart
def num_loaded(self: Any, request: Any) -> int:
    """Make KV that a request has loaded known; how many of its tokens that covers, at most all but one.

    If none of it came, all blocks go back.
    """
    if not is_loaded(self, request):
        return 0
    if request.num_computed_tokens == 0:
        release(self, request)
    publish(self, request, request.num_computed_tokens)
    self.extras[request.index].is_known = 1
    return min(request.num_computed_tokens, num_known_tokens(request) - 1)


def leave_line(self: Any, request: Any) -> None:
    """A request leaves the queue in which it waits."""
    if is_loaded(self, request):
        remove_transfer(self, request)
        self.own.num_holding -= 1
    else:
        leave_queue(self, request)


def read_tier(self: Any, step: Any, request: Any, num_local: int, num_elsewhere: int) -> None:
    """A request that was just admitted reads KV from a tier within its first step."""
    extra = self.extras[request.index]
    extra.transfer, extra.found_in_call = READING, self.own.num_calls
    extra.num_transfers += 1
    extra.num_local_tokens, extra.num_external_tokens = num_local, num_elsewhere
    if self.own.num_tiers:
        self.own.unspent_transfer_s += read_s(self, request, num_local, num_elsewhere)
    decided(self, step, READ, request, num_elsewhere)


@apart
def try_load(
    self: Any, step: Any, request: Any, num_local: int, num_found_free: int, num_elsewhere: int
) -> bool:
    """Give a request blocks for KV that begins to come; it is admitted when that has come."""
    own, extra = self.own, self.extras[request.index]
    num_tokens = request.num_computed_tokens = num_local + num_elsewhere
    num_kept_free = self.config.num_watermark_blocks if own.num_running else 0
    num_taken = num_missing(self, request, num_tokens, num_local) + num_found_free + num_kept_free
    num_whole = 0
    if self.config.reserve_full_isl:
        num_whole = num_missing(self, request, num_known_tokens(request), num_local, True)
        num_whole += num_found_free + num_kept_free
    if num_whole > own.num_free or num_taken > own.num_free - num_owed(self):
        request.num_computed_tokens = 0
        step.waiting_for = KV_BLOCKS
        return False
    leave_line(self, request)
    end_s = step.now + extra.load_s
    extra.awaits_link = extra.num_to_come = 1 if is_elsewhere(self, request) else 0
    if own.num_tiers:
        end_s, extra.came_s, extra.num_below_tokens = inf, step.now, num_elsewhere
        if extra.awaits_link:
            extra.num_below_tokens = num_in_tiers(self, request, num_local, num_known_tokens(request))
        extra.num_to_come += load(self, request, num_local, extra.num_below_tokens, num_tokens)
    adopt(self, request, num_local)
    leave_behind(self, request, num_tokens)
    grow(self, request, num_tokens)
    extra.num_transfers += 1
    extra.num_local_tokens, extra.num_external_tokens = num_local, num_elsewhere
    own.num_holding += 1
    step.num_started += 1
    add_transfer(self, request, LOADING, end_s)
    decided(self, step, LOAD_STARTED, request, num_elsewhere)
    if extra.awaits_link and own.num_tiers and extra.num_below_tokens:
        decided(self, step, READ, request, extra.num_below_tokens)
    return True


@apart
def num_owed(self: Any) -> int:
    """Blocks that others whose prompts are not computed may still take, so that no load takes them away."""
    config, total = self.config, 0
    num_drafted = 0
    if config.num_speculative_tokens:
        num_drafted = 1 + config.num_speculative_tokens + config.num_lookahead_tokens
        total += blocks_for(self, num_drafted)
    for place in range(self.own.num_running):
        request = self.requests[self.running[place]]
        if request.num_computed_tokens < request.num_prompt_tokens:
            total += num_missing(self, request, num_known_tokens(request) + num_drafted)
    for place in range(self.own.num_transfers):
        request = self.requests[self.transfers[place]]
        transfer = self.extras[request.index].transfer
        if transfer in (LOADING, READY):
            total += num_missing(self, request, num_known_tokens(request) + num_drafted)
    return int(total)
