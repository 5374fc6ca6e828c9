"""Feeding a world: traces and clients, through routers, from one thing that somebody sees to the next.

`run` goes on until the requests are all done, `until_s` is reached, the log is full, or all that have a
record are sent; Python then takes what was written, makes more records and calls it again. Where somebody
watches it returns at all that he hears of, too. It never calls back, allocates or raises.
"""

from __future__ import annotations

from typing import Any

from cbsim.base.binding import apart
from cbsim.core.changes import changes_first, stop_if_empty
from cbsim.core.clients import (
    answered,
    ended,
    hears_answers,
    next_arrival_s,
    send_back,
    take_client,
    take_planned,
    try_again,
)
from cbsim.core.layout import (
    AT_ONCE,
    ENTRY,
    NO_FAULT,
    NOBODY,
    PREEMPTED,
    PREEMPTED_NOW,
    PREEMPTED_THERE,
    QUEUES_FULL,
    REJECTED,
    STEPS_WATCHED,
    UNWATCHED,
    UP,
    WAITING,
)
from cbsim.core.leaving import quit_visit
from cbsim.core.links import begin_transfers, end_transfers, find_first, let_go, number_turn
from cbsim.core.loop import ask_at, call, end_step, launch, place_of, submit, wait_for_ranks
from cbsim.core.routing import break_promise, choose, choose_partner, routed
from cbsim.core.transfers import num_rows_of_transfers

FULL, DONE, FAULT, ARRIVAL, DECISION, STEP_END = range(6)
"""Why `run` returned: the log must be emptied or records be made, nothing more will happen, a rule did what
it must not; where somebody watches also that a request arrived, the scheduler decided something, a step
ended."""
UNHEARD = -1
"""Nothing happened that anybody hears of."""

MAX_WORK = 2**23
"""What happens at most, or little more, between two returns to Python, which then shows progress and hears
Ctrl-C: replicas looked at, requests in steps, prompt tokens. Compiled, each takes 2 to 30 ns."""


def run(world: Any, end: int, until_s: float) -> int:
    """Feed requests up to row `end`, and let everything happen that comes before `until_s`, seconds.

    In an open loop replicas are independent of each other between arrivals, so each is brought up to the next
    arrival in one go, and only where the router looks at it. Where clients wait for answers any step may send
    a request, so things happen one by one in the order of time; so they do where somebody watches, and where
    ranks work in step. Every rule is called at one place: compiled, each call is another copy.
    """
    clients, num_replicas = world.clients, len(world.own)
    changes = world.agenda.is_open != 0
    is_in_order = hears_answers(clients) or clients.watched != 0 or clients.has_ranks != 0 or changes
    work = -num_replicas  # So that something happens, however many there are.
    while work < MAX_WORK and clients.num_sent != clients.num_made:
        work += num_replicas
        at_s = next_arrival_s(world, end)
        if not begin_together(world, at_s):
            return FAULT
        target_s = min(at_s, until_s)
        first, last = 0, num_replicas
        if is_in_order:
            first = next_replica(world)
            last = first + 1
            if changes:
                if not has_room(world, 0):
                    return FULL
                if changes_first(world, at_s, until_s, world.own[first].next_s):
                    send_held(world, clients.now)
                    continue
            if world.link.next_s < target_s and world.link.next_s <= world.own[first].next_s:
                end_transfers(world)
                continue
        elif at_s < until_s and not world.routers[ENTRY].reads_state:
            first = choose(world, world.requests[clients.num_sent], at_s)
            last = first + 1
        has_happened, heard = False, UNHEARD
        for number in range(first, last):
            if world.own[number].next_s >= target_s:
                continue
            self = world.replicas[number]
            while self.own.next_s < target_s:
                if work >= MAX_WORK or not has_room(world, num_rows_of_transfers(self)):
                    return FULL
                first_event = world.log.lengths.events
                heard = happen(world, self)
                work += 1 + self.own.num_running + self.shape.num_prefill_tokens
                if self.own.fault != NO_FAULT:
                    return FAULT
                has_happened = True
                if is_in_order:
                    if changes and self.own.is_asked != AT_ONCE:
                        settle_after(world, self, first_event, clients.now)
                    find_first(world, number)
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


def arrive(world: Any, at_s: float) -> None:
    """The next request goes to a replica, waits for one that takes it, or is refused."""
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
    router = world.routers[request.stage]
    if router.chooses_pairs:
        choose_partner(world, request, at_s)
    chosen = NOBODY if router.num_held else choose(world, request, at_s)
    if chosen == NOBODY:
        find_nobody(world, router, request, at_s)
    else:
        deliver(world, request, chosen, at_s)


def deliver(world: Any, request: Any, chosen: int, now: float) -> None:
    """A request comes to a replica; if it is rejected, its client thinks again."""
    clients = world.clients
    routed(world, request, chosen)
    was_asked = world.own[chosen].is_asked
    if not submit(world.replicas[chosen], request, now):
        if request.previous != NOBODY:
            let_go(world, request, now)
        if hears_answers(clients):
            answered(world, request, now, True)
        return
    if clients.has_ranks:
        own = world.own[chosen]
        wait_for_ranks(world.replicas, own.first_rank, world.config[chosen].num_ranks, chosen)
    if world.own[chosen].is_asked > was_asked:
        number_turn(world, chosen)
    find_first(world, chosen)


@apart
def find_nobody(world: Any, router: Any, request: Any, now: float) -> None:
    """No replica takes a request: it waits at the router, or is refused if all are full."""
    is_out = True
    for number in range(router.first, router.end):
        is_out = is_out and world.own[number].state != UP
    if router.holds or is_out:
        ring = world.held[request.stage]
        ring[(router.first_held + router.num_held) % len(ring)] = request.index
        router.num_held += 1
        return
    request.state, request.rejection = REJECTED, QUEUES_FULL
    if len(world.routers) > 1:
        break_promise(world, request)
    try_again(world, request, now, True)


@apart
def send_held(world: Any, now: float) -> None:
    """Those who wait at a router go, in their order, to replicas that take them now."""
    for stage in range(len(world.routers)):
        router, ring, chosen = world.routers[stage], world.held[stage], 0
        while router.num_held and chosen != NOBODY:
            request = world.requests[ring[router.first_held]]
            chosen = choose(world, request, now) if request.state == WAITING else 0
            if chosen == NOBODY:
                break
            router.first_held = (router.first_held + 1) % len(ring)
            router.num_held -= 1
            if request.state == WAITING:
                deliver(world, request, chosen, now)


def begin_together(world: Any, at_s: float) -> bool:
    """Ranks that work in step begin what they have decided, once nothing else happens at this instant.

    `at_s` is when the next request arrives. False if a step may not begin.
    """
    now, num_replicas = world.clients.now, len(world.own)
    if at_s <= now:
        return True
    for number in range(num_replicas):
        if world.own[number].next_s <= now:
            return True
    has_fault, first = False, 0
    while first < num_replicas:
        last = first + world.config[first].num_ranks
        launch(world.replicas, first, last - first, world.costs[world.own[first].pool], now)
        for number in range(first, last):
            has_fault = has_fault or world.own[number].fault != NO_FAULT
            find_first(world, number)
        first = last
    return not has_fault


def happen(world: Any, self: Any) -> int:
    """What comes next in a replica: a step ends and another is decided, or the scheduler is asked.

    Those whom the step answered may send first, before the next one is decided. Where
    somebody watches, the end and each decision are told apart, and nothing else happens between them. Returns
    `STEP_END` or `DECISION` where that is heard, else `UNHEARD`.
    """
    own, clients = self.own, world.clients
    now = clients.now = own.next_s
    if clients.has_ranks and own.is_asked:
        # A transfer that has come wakes a rank, perhaps while others have a step under way.
        wait_for_ranks(world.replicas, own.first_rank, self.config.num_ranks, own.replica)
        if own.next_s > now:
            find_first(world, own.replica)
            return UNHEARD
    number_turn(world, own.replica)
    is_end, has_decided, num_finished = own.is_asked == 0, False, 0
    if clients.watched:
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
        if own.num_tiers or (own.num_transfers and len(world.routers) > 1):
            begin_transfers(world, self, now)
    return heard_of(world, self, is_end, has_decided, num_finished)


def heard_of(world: Any, self: Any, is_end: bool, has_decided: bool, num_finished: int) -> int:
    """`STEP_END` or `DECISION` if somebody hears of what has just happened in a replica, else `UNHEARD`.

    Who hears of requests alone hears of decisions about them, and of ends that bring a first or a last token.
    """
    clients = world.clients
    if clients.watched == UNWATCHED:
        return UNHEARD
    step, with_steps = self.under_way[clients.place], clients.watched == STEPS_WATCHED
    if is_end:
        if with_steps or num_finished or step.num_logits > step.num_decode_seqs:
            return STEP_END
    elif has_decided and (step.num_decisions or (with_steps and step.num_slices)):
        return DECISION
    return UNHEARD


def has_room(world: Any, num_events: int) -> bool:
    """Whether every table of the log has room for what one more `happen` may write down.

    `num_events` may come of transfers.
    """
    lengths = world.log.lengths
    if lengths.steps >= lengths.max_steps or lengths.events + num_events > lengths.max_events:
        return False
    if lengths.prefills > lengths.max_prefills or lengths.decodes > lengths.max_decodes:
        return False
    if lengths.gaps > lengths.max_gaps or lengths.batches > lengths.max_batches:
        return False
    return bool(lengths.changes < lengths.max_changes)


def next_replica(world: Any) -> int:
    """The number of the replica in which something happens next; ends of steps come before calls."""
    return int(world.first_in_order[1]) if len(world.own) > 1 else 0


@apart
def settle_after(world: Any, self: Any, first_event: int, now: float) -> None:
    """What follows from what has happened in a replica, whose decisions begin at a row of the log's events.

    What it preempted goes back to the router, where that is asked for; a replica that is let go is stopped
    once it is empty; whoever waits at a router goes on.
    """
    if self.config.gives_back_preempted:
        for row in range(first_event, world.log.lengths.events):
            event = world.log.events[row]
            request = world.requests[event.request]
            if event.event == PREEMPTED_NOW and request.state == PREEMPTED:
                quit_visit(world, request, now, PREEMPTED_THERE)
                send_back(world, request, now)
    stop_if_empty(world, int(self.own.replica), now)
    for stage in range(len(world.routers)):
        if world.routers[stage].num_held:
            send_held(world, now)
            return
