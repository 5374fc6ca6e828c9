"""Feeding a world: traces and clients, through routers, from one thing that somebody sees to the next.

`run` goes on until the requests are all done, `until_s` is reached, or the log is full; Python then takes
what was written and calls it again. Where somebody watches it returns at all that he hears of, too. It never
calls back, allocates or raises.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

from cbsim.core.layout import (
    AT_ONCE,
    DECODE_STAGE,
    ENTRY,
    HANDED_OVER,
    LEAST_KV,
    NO_FAULT,
    NOBODY,
    PREFIX_AFFINITY,
    RANDOM,
    ROUND_ROBIN,
    STEPS_WATCHED,
)
from cbsim.core.links import begin_transfers, end_transfers, let_go, take_turn
from cbsim.core.loop import ask_at, call, end_step, launch, place_of, submit, wait_for_ranks

FULL, DONE, FAULT, ARRIVAL, DECISION, STEP_END = range(6)
"""Why `run` returned: the log must be emptied, nothing more will happen, a rule did what it must not; where
somebody watches also that a request arrived, the scheduler decided something, a step ended."""
UNHEARD = -1
"""Nothing happened that anybody hears of."""

LOG_MARGIN = 4
"""Rows that one call or one end of a step may add to a table, for each request that may run at once."""
MAX_CHUNK = 65_536
"""Most arrivals between two returns to Python, which then shows progress and hears Ctrl-C."""


def run(world: Any, end: int, until_s: float) -> int:
    """Feed requests up to row `end`, and let everything happen that comes before `until_s`, seconds.

    In an open loop replicas are independent of each other between arrivals, so each is brought up to the next
    arrival in one go, and only where the router looks at it. Where clients wait for answers any step may send
    a request, so things happen one by one in the order of time; so they do where somebody watches, and where
    ranks work in step. Every rule is called at one place: compiled, each call is another copy.
    """
    clients, num_replicas = world.clients, len(world.own)
    is_in_order = hears_answers(clients) or clients.watched != 0 or world.config[0].num_ranks > 1
    for _ in range(MAX_CHUNK):
        at_s = next_arrival_s(world, end)
        if not begin_together(world, at_s):
            return FAULT
        target_s = min(at_s, until_s)
        first, last = 0, num_replicas
        if is_in_order:
            first = next_replica(world)
            last = first + 1
            if world.link.next_s < target_s and world.link.next_s <= world.own[first].next_s:
                end_transfers(world)
                continue
        elif at_s < until_s and not world.routers[ENTRY].reads_state:
            first = choose(world, world.requests[clients.num_sent])
            last = first + 1
        has_happened, heard = False, UNHEARD
        for number in range(first, last):
            if world.own[number].next_s >= target_s:
                continue
            self = world.replicas[number]
            while self.own.next_s < target_s:
                if not has_room(world):
                    return FULL
                heard = happen(world, self)
                if self.own.fault != NO_FAULT:
                    return FAULT
                has_happened = True
                if is_in_order:
                    break
        if heard != UNHEARD:
            return heard
        if has_happened and is_in_order:
            continue
        if at_s >= until_s:
            return DONE
        arrive(world, at_s)
        if clients.watched:
            return ARRIVAL
    return FULL


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


def arrive(world: Any, at_s: float) -> None:
    """The next request goes to a replica; if it is rejected, its client thinks again."""
    clients = world.clients
    request = world.requests[clients.num_sent]
    if clients.is_planned:
        take_planned(world, request, at_s)
    elif clients.is_closed:
        take_client(world)
    if hears_answers(clients):
        request.arrival_s = at_s
    clients.num_sent += 1
    clients.now = at_s
    chosen = choose(world, request)
    routed(world, request, chosen)
    was_asked = world.own[chosen].is_asked
    if not submit(world.replicas[chosen], request):
        if request.previous != NOBODY:
            let_go(world, request, at_s)
        if hears_answers(clients):
            answered(world, request, at_s, True)
        return
    if world.config[0].num_ranks > 1:
        wait_for_ranks(world.replicas, first_rank(world, chosen), world.config[0].num_ranks, chosen)
    if world.own[chosen].is_asked > was_asked:
        take_turn(world, chosen)


def take_planned(world: Any, request: Any, at_s: float) -> None:
    """Make a request of the planned one that is sent now; those that wait for no answer go first."""
    clients, row = world.clients, NOBODY
    if clients.is_closed or next_start_s(world) > at_s:
        row, visit = world.client_heap[0].row, world.client_heap[0].visit
        take_client(world)
        if visit != NOBODY:
            go_on(world, request, world.requests[visit])
            return
    if row == NOBODY:
        row = world.starts[clients.num_started]
        clients.num_started += 1
    planned = world.planned[row]
    request.source = row
    request.deadline_s = planned.deadline_s
    request.job_length = planned.job_length
    request.num_prompt_tokens = planned.num_prompt_tokens
    request.num_output_tokens = planned.num_output_tokens
    request.priority = planned.priority
    request.user_number = planned.user_number
    request.affinity = planned.affinity
    request.first_link = planned.first_link
    request.end_link = planned.end_link
    request.prefill_until = planned.prefill_until
    if len(world.planned_extras):
        take_extras(world.extras[request.index], world.planned_extras[row])
    if len(world.routers) > 1 and request.num_output_tokens > 1:
        # Whoever computes the prompt gives the first token, and hands over the rest.
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


def go_on(world: Any, request: Any, before: Any) -> None:
    """Make the visit in which a request decodes, its prompt's KV and first token behind it."""
    planned = world.planned[before.source]
    before.next_visit = request.index
    request.previous = before.index
    request.stage = DECODE_STAGE
    request.source = before.source
    request.deadline_s = before.deadline_s - (before.last_token_at_s - before.arrival_s)
    request.job_length = before.job_length
    request.num_prompt_tokens = request.prefill_until = planned.num_prompt_tokens + 1
    request.num_output_tokens = planned.num_output_tokens - 1
    request.priority = before.priority
    request.user_number = before.user_number
    request.affinity = before.affinity
    request.first_link = before.first_link
    request.end_link = before.end_link
    request.first_token_at_s = before.first_token_at_s
    request.last_token_at_s = before.last_token_at_s
    request.max_itl_s = before.max_itl_s
    extra = world.extras[request.index]
    take_extras(extra, world.extras[before.index])
    extra.is_remote_decode, extra.send_s = 0, 0.0
    extra.is_remote_prefill, extra.load_s = 1, inf


def first_rank(world: Any, number: int) -> int:
    """The first of the ranks that work in step with a replica."""
    return number - number % int(world.config[0].num_ranks)


def begin_together(world: Any, at_s: float) -> bool:
    """Ranks that work in step begin what they have decided, once nothing else happens at this instant.

    `at_s` is when the next request arrives. False if a step may not begin.
    """
    now, num_replicas, num_ranks = world.clients.now, len(world.own), world.config[0].num_ranks
    if at_s <= now:
        return True
    for number in range(num_replicas):
        if world.own[number].next_s <= now:
            return True
    has_fault = False
    for first in range(0, num_replicas, num_ranks):
        launch(world.replicas, first, num_ranks, world.costs[world.own[first].pool], now)
        for number in range(first, first + num_ranks):
            has_fault = has_fault or world.own[number].fault != NO_FAULT
    return not has_fault


def begin_alone(world: Any, at_s: float) -> bool:
    """In place of `begin_together` where no ranks work in step."""
    return True


def happen(world: Any, self: Any) -> int:
    """What comes next in a replica: a step ends and another is decided, or the scheduler is asked.

    Those whom the step answered may send first, before the next one is decided. Where
    somebody watches, the end and each decision are told apart, and nothing else happens between them. Returns
    `STEP_END` or `DECISION` where that is heard, else `UNHEARD`.
    """
    own, clients = self.own, world.clients
    now = clients.now = own.next_s
    take_turn(world, own.replica)
    is_end, has_decided, num_finished = own.is_asked == 0, False, 0
    clients.replica, clients.place = own.replica, place_of(self, 0 if is_end else own.num_under_way)
    if is_end:
        num_finished = end_step(self)
    if num_finished and hears_answers(clients):
        for number in range(num_finished):
            ended(world, world.requests[self.candidates[number]], now)
        ask_at(self, now)
    elif clients.watched and is_end:
        ask_at(self, now)
        own.is_asked = AT_ONCE
    else:
        has_decided = call(self, world.costs[own.pool], now, clients.watched != 0)
        if len(world.routers) > 1 and own.num_transfers:
            begin_transfers(world, self, now)
    return heard_of(world, self, is_end, has_decided, num_finished)


def heard_of(world: Any, self: Any, is_end: bool, has_decided: bool, num_finished: int) -> int:
    """`STEP_END` or `DECISION` if somebody hears of what has just happened in a replica, else `UNHEARD`.

    Who hears of requests alone hears of decisions about them, and of ends that bring a first or a last token.
    """
    clients = world.clients
    step, with_steps = self.under_way[clients.place], clients.watched == STEPS_WATCHED
    if clients.watched and is_end:
        if with_steps or num_finished or step.num_logits > step.num_decode_seqs:
            return STEP_END
    elif has_decided and clients.watched and (step.num_decisions or (with_steps and step.num_slices)):
        return DECISION
    return UNHEARD


def has_room(world: Any) -> bool:
    """Whether every table of the log has room for what one more `happen` may write down."""
    log, lengths = world.log, world.log.lengths
    margin = LOG_MARGIN * len(world.running[0]) + LOG_MARGIN
    return (
        lengths.steps + LOG_MARGIN < len(log.steps)
        and lengths.events + margin < len(log.events)
        and lengths.prefills + margin < len(log.prefills)
        and lengths.decodes + margin < len(log.decodes)
        and lengths.gaps + margin < len(log.gaps)
        and (world.config[0].with_batches == 0 or lengths.batches + margin < len(log.batches))
    )


# Routers. They see the replicas as they stand at the instant of arrival, before any step that ends then.


def choose(world: Any, request: Any) -> int:
    """The number of the replica that gets the request. Asking changes nothing: see `routed`."""
    router = world.routers[request.stage]
    if router.end - router.first == 1:
        return int(router.first)
    if router.kind == ROUND_ROBIN:
        return int(router.next)
    if router.kind == RANDOM:
        return int(router.first + request.route % (router.end - router.first))
    if router.kind == PREFIX_AFFINITY and request.affinity != NOBODY:
        home = world.homes[request.stage][request.affinity]
        if home != NOBODY:
            return int(home)
    least = router.first
    for number in range(router.first + 1, router.end):
        if load_of(world, router, number) < load_of(world, router, least):
            least = number
    return int(least)


def load_of(world: Any, router: Any, number: int) -> int:
    """What a router compares of a replica: KV blocks in use, or requests that have not ended."""
    own = world.own[number]
    if router.kind == LEAST_KV:
        return own.num_blocks - own.num_free
    return own.num_outstanding


def routed(world: Any, request: Any, chosen: int) -> None:
    """The router remembers where a request went."""
    router = world.routers[request.stage]
    router.next = chosen + 1 if chosen + 1 < router.end else router.first
    if router.kind == PREFIX_AFFINITY and request.affinity != NOBODY:
        world.homes[request.stage][request.affinity] = chosen


# Clients. In a closed loop each sends its next request when its last one has ended, after the time it thinks;
# a turn is sent when the one before it has ended, after its delay, and not before its own arrival. At one
# instant clients that have thought send first; then steps end, and whoever they answered sends, if at once;
# then the next steps are decided.


def next_replica(world: Any) -> int:
    """The number of the replica in which something happens next; ends of steps come before calls."""
    chosen = 0
    for number in range(1, len(world.own)):
        if comes_first(world.own[number], world.own[chosen]):
            chosen = number
    return chosen


def comes_first(own: Any, other: Any) -> bool:
    """Whether what comes next in one replica comes before what does in another."""
    if own.next_s != other.next_s:
        return own.next_s < other.next_s
    if own.is_asked != other.is_asked:
        return own.is_asked < other.is_asked
    return own.turn < other.turn


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


# Without stages: what stands for the rules above in a run in which nobody is handed over.


def go_on_nowhere(world: Any, request: Any, before: Any) -> None:
    """Nobody goes on elsewhere."""


def send_nothing(world: Any, self: Any, now: float) -> None:
    """Nothing is sent."""


def end_nothing(world: Any) -> None:
    """No transfer is under way."""


def let_nobody_go(world: Any, request: Any, now: float) -> None:
    """Nobody was handed over."""


WITHOUT_LINKS: dict[Callable[..., Any], Callable[..., Any]] = {
    go_on: go_on_nowhere,
    begin_transfers: send_nothing,
    end_transfers: end_nothing,
    let_go: let_nobody_go,
}
"""By the rule that each stands for."""
