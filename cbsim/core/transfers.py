"""KV that comes from elsewhere or goes there: what vLLM's KV connectors do between the scheduler's calls.

A transfer takes its time beside the steps. That it has ended is found right after a call and known when the
result of that call is taken. `Replica.transfers` lists the requests whose KV is on its way, in the order in
which that began: those that load stand in no other queue and make up the holding queue.
"""

from __future__ import annotations

from math import inf
from typing import Any

from cbsim.base.binding import apart
from cbsim.core.drafts import count_drafts, num_accepted
from cbsim.core.layout import (
    BOTH,
    CONSUMER,
    FAIL,
    FAILED,
    FAILED_NOW,
    LOADED,
    LOADING,
    NO_CONNECTOR,
    NO_TRANSFER,
    NOBODY,
    READING,
    READY,
    RELEASING,
    REMOTE,
    ROWS_OF_LOAD,
    SENDING,
    SENT,
)
from cbsim.core.pool import num_known_tokens, release, row_of, withdraw
from cbsim.core.tiers import num_in_tiers
from cbsim.core.waiting_queue import owe_no_more

# What is there


def num_external(self: Any, request: Any, num_cached: int) -> int:
    """Tokens behind the first `num_cached` of a request whose KV the connector could bring."""
    config = self.config
    if config.connector == NO_CONNECTOR:
        return 0
    if is_elsewhere(self, request):
        return int(request.num_prompt_tokens - num_cached)
    if self.own.num_tiers:
        return num_in_tiers(self, request, num_cached, num_known_tokens(request))
    if config.connector == REMOTE:
        return 0
    size, extra = self.own.block_size, self.extras[request.index]
    return max(0, min(extra.num_tier_tokens, num_known_tokens(request) - 1) // size * size - num_cached)


def is_elsewhere(self: Any, request: Any) -> bool:
    """Whether another replica has the KV of a request's prompt: it comes once, to its first turn here."""
    if self.config.connector != REMOTE:
        return False
    extra = self.extras[request.index]
    return bool(extra.is_remote_prefill and extra.num_transfers == 0)


def is_loaded_ahead(self: Any, request: Any) -> bool:
    """Whether KV is loaded before a request is admitted, not read within its first step.

    What tiers hold of a prompt whose KV comes from another replica is loaded beside it.
    """
    return bool(not self.config.reads_in_step or is_elsewhere(self, request))


def defers_release(self: Any) -> bool:
    """Whether blocks that a step under way uses may not be given back, as KV may be written to them."""
    config = self.config
    takes_in = config.role == CONSUMER or config.role == BOTH
    return bool(config.connector != NO_CONNECTOR and takes_in and self.own.num_in_flight > 1)


# The list of transfers


def add_transfer(self: Any, request: Any, state: int, end_s: float) -> None:
    """KV of a request is on its way until `end_s`, seconds."""
    extra, own = self.extras[request.index], self.own
    extra.transfer, extra.transfer_end_s, extra.found_in_call = state, end_s, NOBODY
    extra.is_known = 0
    self.transfers[own.num_transfers] = request.index
    own.num_transfers += 1


def num_rows_of_transfers(self: Any) -> int:
    """Events that transfers may bring in one more `happen`.

    All that are under way may be known to have ended at once, and fail; so may, one after the other, loads
    that take no time of all who wait.
    """
    if self.config.connector == NO_CONNECTOR:
        return 0
    return int(ROWS_OF_LOAD * (self.own.num_transfers + self.own.num_waiting))


def remove_transfer(self: Any, request: Any) -> None:
    """A request leaves the list; the others keep their order."""
    own, place = self.own, 0
    while self.transfers[place] != request.index:
        place += 1
    own.num_transfers -= 1
    for later in range(place, own.num_transfers):
        self.transfers[later] = self.transfers[later + 1]
    self.extras[request.index].transfer = NO_TRANSFER


@apart
def next_transfer_s(self: Any) -> float:
    """When the next transfer ends of which nobody knows yet, infinite for never."""
    at_s = inf
    for place in range(self.own.num_transfers):
        extra = self.extras[self.transfers[place]]
        if extra.found_in_call == NOBODY:
            at_s = min(at_s, extra.transfer_end_s)
    return at_s


@apart
def look_for_ends(self: Any, step: Any, now: float) -> None:
    """Find the transfers that have ended; what is found is known when this step's result is taken."""
    for place in range(self.own.num_transfers):
        extra = self.extras[self.transfers[place]]
        if extra.found_in_call == NOBODY and extra.transfer_end_s <= now:
            extra.found_in_call = step.call
            step.num_found += 1
            self.own.num_news += 1


# What has left


@apart
def keeps_blocks(self: Any, request: Any, now: float) -> bool:
    """Whether a request that ends leaves its blocks held: to be fetched, or as a step under way uses them."""
    if self.config.connector == NO_CONNECTOR:
        return False
    extra = self.extras[request.index]
    if extra.is_remote_decode and self.config.role != CONSUMER and request.state != FAILED:
        add_transfer(self, request, SENDING, now + extra.send_s)
        self.own.num_sending += 1
        return True
    if defers_release(self) and request.num_launched_tokens > 0:
        add_transfer(self, request, RELEASING, inf)
        extra.found_in_call = self.own.newest_step_call
        self.own.num_news += 1
        return True
    return False


@apart
def release_deferred(self: Any, call: int) -> None:
    """Take back the blocks that were kept until the result of this call is taken."""
    place = 0
    while place < self.own.num_transfers:
        request = self.requests[self.transfers[place]]
        extra = self.extras[request.index]
        if extra.transfer == RELEASING and extra.found_in_call == call:
            self.own.num_news -= 1
            remove_transfer(self, request)
            release(self, request)
        else:
            place += 1


@apart
def take_news(self: Any, step: Any, now: float) -> None:
    """What was found right after a call is known: KV has come, which may have failed, or was fetched."""
    for is_sent in range(2):
        index = first_news(self, step.call, is_sent)
        while index != NOBODY:
            self.own.num_news -= 1
            request = self.requests[index]
            if is_sent:
                record_news(self, step, now, SENT, request, 0)
                self.own.num_sending -= 1
                remove_transfer(self, request)
                release(self, request)
            else:
                take_load(self, step, now, request)
            index = first_news(self, step.call, is_sent)


def first_news(self: Any, call: int, is_sent: int) -> int:
    """The first to arrive of those whose load, or whose fetching, was found to have ended after a call."""
    first, state = NOBODY, SENDING if is_sent else LOADING
    for place in range(self.own.num_transfers):
        index = self.transfers[place]
        extra = self.extras[index]
        if extra.transfer == state and extra.found_in_call == call and (first == NOBODY or index < first):
            first = index
    return int(first)


def take_load(self: Any, step: Any, now: float, request: Any) -> None:
    """A load has ended; if it failed, the request may fail with it."""
    extra = self.extras[request.index]
    record_news(self, step, now, LOADED, request, extra.num_external_tokens)
    extra.transfer = READY
    first_bad = first_bad_block(self, request)
    if first_bad == NOBODY:
        return
    if self.config.load_failure_policy != FAIL:
        request.num_computed_tokens = first_bad * self.own.block_size
        return
    self.own.num_holding -= 1
    remove_transfer(self, request)
    end_in_error(self, step, now, request)


def first_bad_block(self: Any, request: Any) -> int:
    """The first block that the last transfer of a request did not bring, `NOBODY` if it brought all."""
    extra, size = self.extras[request.index], self.own.block_size
    if extra.first_bad_block == NOBODY or extra.num_transfers > 1:
        return NOBODY
    first = max(extra.first_bad_block, extra.num_local_tokens // size)
    return first if first * size < extra.num_local_tokens + extra.num_external_tokens else NOBODY


def end_in_error(self: Any, step: Any, now: float, request: Any) -> None:
    """A request that has left all queues has failed, and gives back its blocks."""
    request.state = FAILED
    self.own.num_outstanding -= 1
    owe_no_more(self, request)
    record_news(self, step, now, FAILED_NOW, request, 0)
    if not keeps_blocks(self, request, now):
        release(self, request)


def record_news(self: Any, step: Any, now: float, event: int, request: Any, num_tokens: int) -> None:
    """Add a row to the events: what is told with a step, if that has slices."""
    write_event(self, now, step.number if step.num_slices else NOBODY, event, request, num_tokens)


def write_event(self: Any, now: float, number: int, event: int, request: Any, num_tokens: int) -> None:
    """Add a row to the events, of the step of a number or of none, `NOBODY`."""
    row = self.log.events[self.log.lengths.events]
    row.time_s = now
    row.replica = self.own.replica
    row.step = number
    row.request = request.index
    row.event = event
    row.num_tokens = num_tokens
    self.log.lengths.events += 1


# Reads that fail within a step


@apart
def take_failed_reads(self: Any, step: Any) -> None:
    """Reads from a tier within this step have failed: who computed on blocks that did not come goes back.

    In the order of the running list; a block that two requests share is computed anew by the first of them.
    """
    blocks, num_bad = self.blocks, 0
    for place in range(step.num_slices):
        request = self.requests[self.slices[step.place][place].request]
        extra = self.extras[request.index]
        if extra.transfer == READING and extra.found_in_call == step.call:
            extra.transfer = NO_TRANSFER
            first_bad = first_bad_block(self, request)
            if first_bad != NOBODY and request.slot != NOBODY:
                end = (extra.num_local_tokens + extra.num_external_tokens) // self.own.block_size
                for bad in range(first_bad, end):
                    blocks[self.tables[row_of(self, request, 0)][bad]].num_seen = 1
                    num_bad += 1
    if num_bad == 0:
        return
    for place in range(self.own.num_running):
        go_back(self, step, self.requests[self.running[place]])
    for number in range(self.own.num_blocks):
        blocks[number].num_seen = 0


def go_back(self: Any, step: Any, request: Any) -> None:
    """Set a running request back to before its first block that did not come, if it holds one."""
    own, size = self.own, self.own.block_size
    num_tokens, position = 0, NOBODY
    for place in range(step.num_slices):
        part = self.slices[step.place][place]
        if part.request == request.index and request.preempted_in_call <= step.call:
            position, num_tokens = place, part.num_tokens
    num_before = request.num_computed_tokens - num_tokens
    first_bad, is_hit = NOBODY, False
    for place in range(-(-num_before // size)):
        block = self.blocks[self.tables[row_of(self, request, 0)][place]]
        if block.num_seen:
            is_hit = True
            if block.num_seen == 1:
                block.num_seen = 2
                if first_bad == NOBODY:
                    first_bad = place
    if not is_hit:
        return
    num_left = num_before if first_bad == NOBODY else first_bad * size
    own.num_kv_tokens += num_left - request.num_computed_tokens
    request.num_computed_tokens = num_left
    drop(self, step, request, position, first_bad)


def drop(self: Any, step: Any, request: Any, position: int, first_bad: int) -> None:
    """Drop what a step sampled for a request: it goes on from where it was set back to, or fails."""
    if position != NOBODY:
        part = self.slices[step.place][position]
        if part.emits:
            num_accepted(self, request, part)
            part.emits = 0
            config = self.config
            if (
                config.load_failure_policy != FAIL
                and config.num_speculative_tokens
                and not config.async_scheduling
            ):
                count_drafts(self, request)
    if self.config.load_failure_policy == FAIL:
        request.state = FAILED
        if position != NOBODY:
            request.num_launched_tokens -= self.slices[step.place][position].num_tokens
        if first_bad != NOBODY:
            withdraw(self, request, first_bad * self.own.block_size)


@apart
def remove_failed(self: Any, step: Any, now: float) -> None:
    """Running requests that have failed leave."""
    own, place = self.own, 0
    while place < own.num_running:
        request = self.requests[self.running[place]]
        if request.state == FAILED:
            own.num_running -= 1
            for later in range(place, own.num_running):
                self.running[later] = self.running[later + 1]
            own.num_kv_tokens -= request.num_computed_tokens
            end_in_error(self, step, now, request)
        else:
            place += 1
