"""Clients: when the next request comes, what it is, and who sends once it has ended.

In a closed loop each client sends its next request when its last one has ended, after the time it thinks; a
turn is sent when the one before it has ended, after its delay, and not before its own arrival. At one instant
clients that have thought send first; then steps end, and whoever they answered sends, if at once; then the
next steps are decided.
"""

from __future__ import annotations

from math import inf
from typing import Any

from cbsim.base.binding import apart
from cbsim.core.layout import (
    DECODE_STAGE,
    ENTRY,
    HANDED_OVER,
    NOBODY,
    QUEUES_FULL,
    SENDING,
    TIMED_OUT,
)
from cbsim.core.routing import break_promise


def hears_answers(clients: Any) -> bool:
    """Whether answers make clients send: in a closed loop, and where requests wait for those to others."""
    return clients.is_closed != 0 or clients.is_planned != 0


def next_arrival_s(world: Any, end: int) -> float:
    """When the next request arrives, seconds; infinite if none will, or not before another one has ended."""
    clients = world.clients
    if clients.num_sent == end:
        return inf
    if not hears_answers(clients):
        return world.requests[clients.num_sent].arrival_s
    if clients.is_closed and clients.is_planned:
        leave_idle(world)
    due_s = world.client_heap[0].due_s if clients.size else inf
    return due_s if clients.is_closed else min(due_s, next_start_s(world))


def next_start_s(world: Any) -> float:
    """When the next planned request that waits for no answer arrives, seconds; infinite if none does."""
    clients = world.clients
    if clients.num_started == len(world.starts):
        return inf
    return world.planned[world.starts[clients.num_started]].arrival_s


def leave_idle(world: Any) -> None:
    """Clients that have no turn left to send leave, once every session has begun."""
    clients = world.clients
    while clients.size and clients.num_started == len(world.starts):
        first = world.client_heap[0]
        if first.row != NOBODY or first.visit != NOBODY:
            return
        take_client(world)


def take_planned(world: Any, request: Any, at_s: float) -> None:
    """Make a request of the planned one that is sent now; those that wait for no answer go first."""
    clients, row = world.clients, NOBODY
    if clients.is_closed or next_start_s(world) > at_s:
        row, visit = world.client_heap[0].row, world.client_heap[0].visit
        take_client(world)
        if visit != NOBODY:
            go_on(world, request, world.requests[visit], at_s)
            return
    if row == NOBODY:
        row = world.starts[clients.num_started]
        clients.num_started += 1
    take_fixed(world, request, row)
    if len(world.routers) > 1:
        leave_rest(world, request)


def take_fixed(world: Any, request: Any, row: int) -> None:
    """What a request is, as planned."""
    planned = world.planned[row]
    request.source = row
    request.deadline_s = planned.deadline_s
    request.job_length = planned.job_length
    request.num_prompt_tokens = request.prefill_until = planned.num_prompt_tokens
    request.num_output_tokens = planned.num_output_tokens
    request.priority = planned.priority
    request.user_number = planned.user_number
    request.affinity = planned.affinity
    request.first_link = planned.first_link
    request.end_link = planned.end_link
    if len(world.planned_extras):
        take_extras(world.extras[request.index], world.planned_extras[row])


def leave_rest(world: Any, request: Any) -> None:
    """Whoever computes the prompt gives the first token, and hands over the rest."""
    if request.num_output_tokens > 1:
        request.num_output_tokens = 1
        world.extras[request.index].is_remote_decode = 1
        world.extras[request.index].send_s = inf


def take_extras(extra: Any, brought: Any) -> None:
    """What a request brings along for speculation and connectors."""
    extra.is_remote_prefill, extra.load_s = brought.is_remote_prefill, brought.load_s
    extra.is_remote_decode, extra.send_s = brought.is_remote_decode, brought.send_s
    extra.num_tier_tokens, extra.first_bad_block = brought.num_tier_tokens, brought.first_bad_block
    extra.first_accepted, extra.end_accepted = brought.first_accepted, brought.end_accepted
    extra.first_proposed, extra.end_proposed = brought.first_proposed, brought.end_proposed


@apart
def go_on(world: Any, request: Any, before: Any, now: float) -> None:
    """Make the visit that follows another one of its request.

    It decodes, the prompt's KV and first token behind it. Or what was lost is computed again, the tokens that
    came out known; or its client, who has not waited for them, wants them all anew.
    """
    take_fixed(world, request, before.source)
    before.next_visit = request.index
    request.previous = before.index
    request.attempt, request.num_reroutes = before.attempt, before.num_reroutes
    request.deadline_s = before.deadline_s - (now - before.arrival_s)
    if before.rejection == TIMED_OUT or before.rejection == QUEUES_FULL:
        request.attempt += 1
    else:
        num_known = before.num_prompt_tokens + before.num_generated_tokens
        request.num_output_tokens -= num_known - request.num_prompt_tokens
        request.num_prompt_tokens = request.prefill_until = num_known
        request.first_token_at_s = before.first_token_at_s
        request.last_token_at_s = before.last_token_at_s
        request.max_itl_s = before.max_itl_s
        if before.state == HANDED_OVER and world.extras[before.index].transfer == SENDING:
            request.stage = DECODE_STAGE
            extra = world.extras[request.index]
            extra.is_remote_decode, extra.send_s = 0, 0.0
            extra.is_remote_prefill, extra.load_s = 1, inf
            if world.routers[ENTRY].chooses_pairs:
                extra.partner = world.extras[before.index].partner
                break_promise(world, before)
            return
        request.num_reroutes += 1
    if len(world.routers) > 1:
        leave_rest(world, request)


def send_back(world: Any, request: Any, now: float) -> None:
    """A request that was lost goes back to the router, unless it has been lost too often."""
    if request.num_reroutes < world.agenda.max_reroutes:
        think(world, NOBODY, now, False, request.index)
    elif hears_answers(world.clients):
        answered(world, request, now, False)


def try_again(world: Any, request: Any, now: float, is_rejected: bool) -> None:
    """A client that was refused, or has waited long enough, sends again, or gives up."""
    agenda = world.agenda
    if request.attempt < agenda.max_retries:
        think(world, NOBODY, now + agenda.backoff_s * (1 << request.attempt), False, request.index)
    elif hears_answers(world.clients):
        answered(world, request, now, is_rejected)


def ended(world: Any, request: Any, now: float) -> None:
    """A request has got the last token of this visit: it is handed over, or its client hears of it."""
    if len(world.routers) > 1 and world.extras[request.index].is_remote_decode:
        request.state = HANDED_OVER
        think(world, NOBODY, now, False, request.index)
    else:
        answered(world, request, now, False)


def answered(world: Any, request: Any, now: float, is_rejected: bool) -> None:
    """The client of a request that has ended will send again, if it has anything left to send."""
    clients, row, due_s = world.clients, NOBODY, now + request.think_s
    if clients.is_planned:
        row = world.turns[request.source].next
        if row != NOBODY:
            due_s = now + world.turns[row].delay_s
            if not clients.is_closed:
                due_s = max(due_s, world.planned[row].arrival_s)
    if clients.is_closed or row != NOBODY:
        think(world, row, due_s, is_rejected and clients.is_closed != 0 and due_s == now, NOBODY)


def think(world: Any, row: int, due: float, is_first: bool, visit: int) -> None:
    """A client will send the planned request in a row, or the next one, at the instant `due`.

    Or else the request whose `visit` has ended comes to another replica then.

    In a closed loop whoever was refused and thinks no time sends at once, before all others: `is_first`.
    """
    clients, heap = world.clients, world.client_heap
    place = clients.size
    clients.size += 1
    clients.order += 1
    order = clients.order
    if is_first:
        order = -order
    while place > 0:
        above = heap[(place - 1) // 2]
        if above.due_s < due or (above.due_s == due and above.order < order):
            break
        put_client(heap[place], above.due_s, above.order, above.row, above.visit)
        place = (place - 1) // 2
    put_client(heap[place], due, order, row, visit)


def put_client(client: Any, due_s: float, order: int, row: int, visit: int) -> None:
    """Field by field: an assignment of the whole would name the same object in a list."""
    client.due_s = due_s
    client.order = order
    client.row = row
    client.visit = visit


def take_client(world: Any) -> None:
    """Remove the client that sends first."""
    clients, heap = world.clients, world.client_heap
    clients.size -= 1
    last = heap[clients.size]
    due, order, row, visit = last.due_s, last.order, last.row, last.visit
    place, below = 0, 1
    while below < clients.size:
        if below + 1 < clients.size:
            one, other = heap[below], heap[below + 1]
            if other.due_s < one.due_s or (other.due_s == one.due_s and other.order < one.order):
                below += 1
        lower = heap[below]
        if due < lower.due_s or (due == lower.due_s and order < lower.order):
            break
        put_client(heap[place], lower.due_s, lower.order, lower.row, lower.visit)
        place, below = below, 2 * below + 1
    put_client(heap[place], due, order, row, visit)
