"""Visits that end before their time: a replica or a link fails, a client has waited long enough."""

from __future__ import annotations

from math import inf
from typing import Any

from cbsim.base.binding import apart
from cbsim.core.clients import send_back, try_again
from cbsim.core.layout import (
    DOWN,
    ENTRY,
    FAILED,
    FAILED_NOW,
    FAILED_REPLICA,
    KV_LOST,
    LOADING,
    NO_CONNECTOR,
    NOBODY,
    PREEMPTED,
    READY,
    REPLICA_LOST,
    RUNNING,
    SENDING,
    TIMED_OUT,
    WAITING,
)
from cbsim.core.links import drop_transfers, let_go, wake
from cbsim.core.loop import close_decodes, place_of, record_step
from cbsim.core.pool import forget, release
from cbsim.core.routing import break_promise
from cbsim.core.tiers import lose_tiers
from cbsim.core.transfers import keeps_blocks, remove_transfer, write_event
from cbsim.core.verbs import remove_running
from cbsim.core.waiting_queue import leave_queue, owe_no_more


def is_here(request: Any) -> bool:
    """Whether a request that has been sent has not ended this visit."""
    return bool(request.state == WAITING or request.state == RUNNING or request.state == PREEMPTED)


@apart
def quit_visit(world: Any, request: Any, now: float, code: int) -> None:
    """A request leaves its replica, or the router, without its tokens; what is under way for it is lost."""
    if len(world.routers) > 1:
        if request.previous != NOBODY:
            let_go(world, request, now)
        if request.stage == ENTRY:
            break_promise(world, request)
    if request.replica == NOBODY:
        request.state, request.rejection = FAILED, code
        return
    self = world.replicas[request.replica]
    if is_loading(self, request) and world.extras[request.index].transfer_end_s == inf:
        drop_transfers(world, request.index, NOBODY, now)
    abort(self, request, now, code)
    if self.own.num_under_way == 0 and self.own.num_waiting:
        wake(world, int(self.own.replica), now)


def abort(self: Any, request: Any, now: float, code: int) -> None:
    """Take a request out of a replica, wherever it stands there."""
    own = self.own
    close_decodes(self, request)
    if request.state == RUNNING:
        remove_running(self, request)
        own.num_kv_tokens -= request.num_computed_tokens
    elif is_loading(self, request):
        extra = self.extras[request.index]
        if extra.transfer == LOADING and extra.found_in_call != NOBODY:
            own.num_news -= 1
        remove_transfer(self, request)
        own.num_holding -= 1
    else:
        leave_queue(self, request)
        if request.was_passed_over:
            request.was_passed_over = 0
            own.num_passed_over -= 1
        own.num_swapped_blocks -= request.num_swapped_blocks
        request.num_swapped_blocks = 0
    owe_no_more(self, request)
    request.state, request.rejection = FAILED, code
    own.num_outstanding -= 1
    write_event(self, now, NOBODY, FAILED_NOW, request, 0)
    if not keeps_blocks(self, request, now):
        release(self, request)


def is_loading(self: Any, request: Any) -> bool:
    """Whether a request waits for KV or, with it, for its first step."""
    if self.config.connector == NO_CONNECTOR:
        return False
    transfer = self.extras[request.index].transfer
    return transfer in (LOADING, READY)


@apart
def fall(world: Any, number: int, now: float) -> bool:
    """A replica has failed: its requests go back to the router, its KV is lost.

    Some of them at a time, as the log has room for; False if others are left.
    """
    self = world.replicas[number]
    own = self.own
    if own.state != DOWN:
        own.state = DOWN
        record_change(world, number, now, FAILED_REPLICA)
        cut_steps(self, now)
    num_gone, row = 0, world.agenda.first_open
    while row < world.clients.num_sent:
        request = world.requests[row]
        if request.replica == number and is_here(request):
            if num_gone == len(self.running):
                return False
            num_gone += 1
            quit_visit(world, request, now, REPLICA_LOST)
            send_back(world, request, now)
        row += 1
    if self.config.connector != NO_CONNECTOR:
        while own.num_transfers:
            if num_gone == len(self.running):
                return False
            num_gone += 1
            request = world.requests[self.transfers[0]]
            later = request.next_visit
            is_sending = world.extras[request.index].transfer == SENDING
            remove_transfer(self, request)
            release(self, request)
            if is_sending and later != NOBODY:
                lose_kv(world, world.requests[later], now)
        own.num_sending = own.num_news = own.num_holding = 0
    if own.prefix_caching:
        for block in range(own.num_blocks):
            forget(self, block)
    if own.num_tiers:
        lose_tiers(self)
        drop_transfers(world, NOBODY, number, now)
    own.next_s = inf
    own.is_asked = 0
    return True


def lose_kv(world: Any, request: Any, now: float) -> None:
    """The KV that a request waits for elsewhere will not come, unless it is there."""
    if is_here(request) and world.extras[request.previous].transfer_end_s == inf:
        quit_visit(world, request, now, KV_LOST)
        send_back(world, request, now)


@apart
def cut_link(world: Any, now: float) -> bool:
    """The link has failed: transfers under way are lost, some at a time. False if others are left."""
    num_gone = place = 0
    while place < world.link.num_transfers:
        transfer = world.on_link[place]
        if transfer.sender >= len(world.own):
            place += 1  # A tier's.
        elif num_gone == len(world.running[0]):
            return False
        else:
            num_gone += 1
            lose_kv(world, world.requests[transfer.request], now)
            place = 0
    return True


def cut_steps(self: Any, now: float) -> None:
    """The steps under way end without effect, the first of them perhaps amid its work."""
    own = self.own
    for number in range(own.num_under_way):
        step = self.under_way[place_of(self, number)]
        if step.num_slices:
            step.start_s = min(step.start_s, now)
            step.end_s = now
            step.duration_s = now - step.start_s
            record_step(self, step, 0, 0, 0, 0)
            own.last_end_s = now
    own.num_under_way = own.num_begun = own.first_under_way = 0
    own.unspent_transfer_s = 0.0
    own.first_stage_until_s = own.busy_until_s = now


@apart
def give_up(world: Any, row: int, now: float) -> None:
    """A client has waited long enough for the request that it sent as the visit in a row."""
    request = world.requests[last_of_attempt(world, row)]
    quit_visit(world, request, now, TIMED_OUT)
    try_again(world, request, now, False)


def last_of_attempt(world: Any, row: int) -> int:
    """The row of the latest visit that belongs to a visit's attempt."""
    later = world.requests[row].next_visit
    while later != NOBODY and world.requests[later].attempt == world.requests[row].attempt:
        row, later = later, world.requests[later].next_visit
    return int(row)


def record_change(world: Any, number: int, now: float, change: int) -> None:
    """Write down that a replica has changed."""
    row = world.log.changes[world.log.lengths.changes]
    row.time_s, row.replica, row.change = now, number, change
    world.log.lengths.changes += 1
