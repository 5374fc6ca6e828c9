"""What changes in a cluster by itself: replicas and links fail and come back, pools grow and shrink, clients
stop waiting.

At one instant these come before arrivals; clients stop waiting after what ends then.
"""

from __future__ import annotations

from math import ceil, inf
from typing import Any

from cbsim.base.binding import apart
from cbsim.core.layout import (
    BY_KV,
    BY_OUTSTANDING,
    BY_QUEUE,
    BY_RULE,
    BY_SCHEDULE,
    BY_TTFT,
    DRAINED,
    DRAINING,
    FAILED,
    FINISHED,
    KV_LOST,
    MADE_READY,
    NOBODY,
    PREEMPTED_THERE,
    REJECTED,
    REPAIRED,
    REPLICA_LOST,
    RESTORED,
    SLOWED,
    STARTED,
    STARTING,
    STOPPED,
    STOPPED_NOW,
    UP,
)
from cbsim.core.leaving import cut_link, fall, give_up, is_here, last_of_attempt, record_change
from cbsim.core.links import begin_transfers, take_turn

TOLERANCE = 0.1
"""Share by which a figure may be off its target before a pool grows or shrinks (as in Kubernetes)."""


def desired(scaler: Any) -> float:
    """How many replicas a pool should have: a third party's rule over a `SCALER`."""
    return float(scaler.num_up + scaler.num_starting)


def changes_first(world: Any, at_s: float, until_s: float, own_s: float) -> bool:
    """Make the next change, if that comes before the next arrival and all that happens in replicas."""
    agenda, clients, link_s = world.agenda, world.clients, world.link.next_s
    if agenda.failing != NOBODY:
        go_on_falling(world)
        return True
    is_still = at_s == inf and own_s == inf and link_s == inf
    change_s, timeout_s = agenda.next_s, next_timeout_s(world)
    if is_still and next_help_s(world) == inf:
        change_s = inf
    if timeout_s < min(until_s, at_s, own_s, link_s, change_s):
        clients.now = timeout_s
        stop_waiting(world, timeout_s)
        return True
    if change_s == inf or change_s >= until_s or change_s > min(at_s, own_s, link_s):
        return False
    clients.now = change_s
    change(world, change_s)
    return True


def nothing_changes(world: Any, at_s: float, until_s: float, own_s: float) -> bool:
    """In place of `changes_first`: nothing changes by itself."""
    return False


@apart
def change(world: Any, now: float) -> None:
    """Make one change that is due, in this order: replicas come back, faults, pools are scaled."""
    agenda = world.agenda
    if not (comes_back(world, now) or fails(world, now)):
        for place in range(len(world.scalers)):
            scaler = world.scalers[place]
            if scaler.next_s <= now:
                scale(world, scaler, now)
                break
    if agenda.failing == NOBODY:
        find_next(world)


def comes_back(world: Any, now: float) -> bool:
    """A replica or the link takes requests again, or is as fast as it was."""
    agenda = world.agenda
    for number in range(len(world.own)):
        own = world.own[number]
        if own.back_at_s <= now:
            own.back_at_s = inf
            record_change(world, number, now, MADE_READY if own.state == STARTING else REPAIRED)
            own.state = UP
            will_fail(world, number, now)
            return True
        if own.restored_at_s <= now:
            own.restored_at_s, own.slowdown = inf, 1.0
            record_change(world, number, now, RESTORED)
            return True
    if agenda.link_back_at_s <= now:
        agenda.link_back_at_s = inf
        world.link.is_down = 0
        for number in range(len(world.own)):
            begin_transfers(world, world.replicas[number], now)
        return True
    return False


def will_fail(world: Any, number: int, now: float) -> None:
    """Find out when a replica that is well fails."""
    own, num_draws = world.own[number], len(world.draws)
    if world.agenda.mtbf_s < inf:
        draw = world.draws[(number * 7919 + own.num_failures) % num_draws]
        own.num_failures += 1
        own.fails_at_s = now + world.agenda.mtbf_s * draw


def fails(world: Any, now: float) -> bool:
    """A fault that is listed happens, or one that was drawn."""
    agenda = world.agenda
    if agenda.num_faults < len(world.faults) and world.faults[agenda.num_faults].at_s <= now:
        fault = world.faults[agenda.num_faults]
        agenda.num_faults += 1
        if fault.replica == NOBODY:
            world.link.is_down = 1
            agenda.link_back_at_s = now + fault.repair_s
            agenda.failing = len(world.own)
            go_on_falling(world)
        elif world.own[fault.replica].state in (UP, DRAINING):
            own = world.own[fault.replica]
            if fault.slowdown > 1.0:
                own.slowdown, own.restored_at_s = fault.slowdown, now + fault.repair_s
                record_change(world, int(fault.replica), now, SLOWED)
            else:
                begin_to_fall(world, int(fault.replica), now, fault.repair_s)
        return True
    for number in range(len(world.own)):
        if world.own[number].fails_at_s <= now:
            begin_to_fall(world, number, now, agenda.repair_s)
            return True
    return False


def begin_to_fall(world: Any, number: int, now: float, repair_s: float) -> None:
    """A replica fails."""
    own = world.own[number]
    own.fails_at_s = own.restored_at_s = inf
    own.slowdown = 1.0
    own.back_at_s = now + repair_s
    world.agenda.failing = number
    go_on_falling(world)


def go_on_falling(world: Any) -> None:
    """Further requests leave what has failed: a replica, or behind the last number the link."""
    agenda, failing = world.agenda, int(world.agenda.failing)
    while agenda.first_open < world.clients.num_sent and not is_here(world.requests[agenda.first_open]):
        agenda.first_open += 1
    if failing == len(world.own):
        is_over = cut_link(world, world.clients.now)
    else:
        is_over = fall(world, failing, world.clients.now)
        take_turn(world, failing)
    if is_over:
        agenda.failing = NOBODY
        find_next(world)


def find_next(world: Any) -> None:
    """Find out when the next change comes."""
    agenda = world.agenda
    next_s = next_return_s(world)
    if agenda.num_faults < len(world.faults):
        next_s = min(next_s, world.faults[agenda.num_faults].at_s)
    for number in range(len(world.own)):
        own = world.own[number]
        next_s = min(next_s, own.fails_at_s, own.restored_at_s)
    for place in range(len(world.scalers)):
        next_s = min(next_s, world.scalers[place].next_s)
    agenda.next_s = next_s


def next_help_s(world: Any) -> float:
    """When the next change comes that may let requests go on for which nothing else happens any more."""
    return next_return_s(world) if is_anybody_here(world) else inf


@apart
def next_return_s(world: Any) -> float:
    """When a replica or the link takes requests again, or may by a schedule."""
    next_s = world.agenda.link_back_at_s
    for number in range(len(world.own)):
        next_s = min(next_s, world.own[number].back_at_s)
    for place in range(len(world.scalers)):
        if world.scalers[place].kind == BY_SCHEDULE:
            next_s = min(next_s, world.scalers[place].next_s)
    return float(next_s)


def is_anybody_here(world: Any) -> bool:
    """Whether any request that was sent has not ended."""
    for stage in range(len(world.routers)):
        if world.routers[stage].num_held:
            return True
    num_here = 0
    for number in range(len(world.own)):
        num_here += world.own[number].num_outstanding
    return num_here > 0


# Clients that stop waiting


def next_timeout_s(world: Any) -> float:
    """When the next client stops waiting for a first or for a last token."""
    agenda, next_s = world.agenda, inf
    if agenda.first_token_timeout_s < inf:
        agenda.first_token_row = next_waiting(world, int(agenda.first_token_row), True)
        next_s = due_s(world, int(agenda.first_token_row), agenda.first_token_timeout_s)
    if agenda.timeout_s < inf:
        agenda.last_token_row = next_waiting(world, int(agenda.last_token_row), False)
        next_s = min(next_s, due_s(world, int(agenda.last_token_row), agenda.timeout_s))
    return next_s


def due_s(world: Any, row: int, timeout_s: float) -> float:
    """When the client of the request in a row stops waiting; infinite if there is none yet."""
    return float(world.requests[row].arrival_s + timeout_s) if row < world.clients.num_sent else inf


@apart
def next_waiting(world: Any, row: int, for_first: bool) -> int:
    """The first row, from one on, with which a client sent a request that is not answered yet."""
    while row < world.clients.num_sent:
        request = world.requests[row]
        is_start = request.previous == NOBODY or world.requests[request.previous].attempt != request.attempt
        if is_start:
            last = world.requests[last_of_attempt(world, row)]
            if not has_ended(world, last) and not (for_first and last.first_token_at_s >= 0.0):
                return row
        row += 1
    return row


def has_ended(world: Any, request: Any) -> bool:
    """Whether nothing more comes of what a client sent, whose latest visit this is."""
    if request.state == FAILED and request.rejection in (REPLICA_LOST, KV_LOST, PREEMPTED_THERE):
        return bool(request.num_reroutes >= world.agenda.max_reroutes)
    return bool(request.state == FINISHED or request.state == REJECTED or request.state == FAILED)


def stop_waiting(world: Any, now: float) -> None:
    """The client whose time is over stops waiting."""
    agenda = world.agenda
    for_first = due_s(world, int(agenda.first_token_row), agenda.first_token_timeout_s) == now
    give_up(world, int(agenda.first_token_row if for_first else agenda.last_token_row), now)


# Pools that grow and shrink


@apart
def scale(world: Any, scaler: Any, now: float) -> None:
    """Decide how many replicas a pool has."""
    look_at_pool(world, scaler, now)
    num_now = scaler.num_up + scaler.num_starting
    num_wanted = min(max(num_desired(world, scaler, now), scaler.least), scaler.most)
    if scaler.kind != BY_SCHEDULE:
        scaler.next_s = now + scaler.interval_s
    if num_wanted < num_now and scaler.stabilization_s > 0.0:
        if scaler.low_since_s == inf:
            scaler.low_since_s, scaler.peak = now, num_wanted
        scaler.peak = max(scaler.peak, num_wanted)
        let_go_s = scaler.low_since_s + scaler.stabilization_s
        if now < let_go_s:
            if scaler.kind == BY_SCHEDULE:
                scaler.next_s = min(scaler.next_s, let_go_s)
            return
        num_wanted = scaler.peak
    scaler.low_since_s = inf
    while num_now < num_wanted and start_one(world, scaler, now):
        num_now += 1
    while num_now > num_wanted:
        let_one_go(world, scaler, now)
        num_now -= 1


def look_at_pool(world: Any, scaler: Any, now: float) -> None:
    """Take down how a pool stands."""
    num_up = num_starting = num_waiting = num_outstanding = 0
    kv_share = ttft_s = 0.0
    for number in range(scaler.first, scaler.end):
        own = world.own[number]
        if own.state == STARTING:
            num_starting += 1
        elif own.state == UP:
            num_up += 1
            num_waiting += own.num_waiting + own.num_holding
            num_outstanding += own.num_outstanding
            kv_share += (own.num_blocks - own.num_free) / own.num_blocks
            ttft_s += own.num_owed_tokens * world.config[number].prefill_token_s * own.slowdown
    for stage in range(len(world.routers)):
        if world.routers[stage].first <= scaler.first < world.routers[stage].end:
            num_waiting += world.routers[stage].num_held
            num_outstanding += world.routers[stage].num_held
    scaler.now = now
    scaler.num_up, scaler.num_starting = num_up, num_starting
    scaler.num_waiting, scaler.num_outstanding = num_waiting, num_outstanding
    scaler.kv_share = kv_share / max(num_up, 1)
    scaler.ttft_s = ttft_s / max(num_up, 1)


def num_desired(world: Any, scaler: Any, now: float) -> int:
    """Replicas so that a figure is at its target: as many as now times the figure over the target.

    As the Kubernetes Horizontal Pod Autoscaler has it, with its tolerance.
    """
    kind, num_now = scaler.kind, scaler.num_up + scaler.num_starting
    if kind == BY_SCHEDULE:
        num_planned = num_now
        scaler.next_s = inf
        for row in range(scaler.first_plan, scaler.end_plan):
            if world.plans[row].at_s <= now:
                num_planned = world.plans[row].count
            elif scaler.next_s == inf:
                scaler.next_s = world.plans[row].at_s
        return int(num_planned)
    if kind == BY_RULE:
        return ceil(desired(scaler))
    ratio, num_counted = 1.0, scaler.num_up
    if kind == BY_QUEUE:
        ratio, num_counted = scaler.num_waiting / scaler.target, 1
    elif kind == BY_OUTSTANDING:
        ratio, num_counted = scaler.num_outstanding / scaler.target, 1
    elif kind == BY_KV:
        ratio = scaler.kv_share / scaler.target
    elif kind == BY_TTFT:
        ratio = scaler.ttft_s / scaler.target
    wanted = ratio * num_counted
    if abs(wanted - num_now) <= TOLERANCE * num_now:
        return int(num_now)
    return ceil(wanted - 1e-9)


def start_one(world: Any, scaler: Any, now: float) -> bool:
    """A replica that was being let go takes requests again, or another one is started."""
    for number in range(scaler.first, scaler.end):
        if world.own[number].state == DRAINING:
            world.own[number].state = UP
            record_change(world, number, now, MADE_READY)
            return True
    for number in range(scaler.first, scaler.end):
        own = world.own[number]
        if own.state == STOPPED:
            own.state, own.back_at_s = STARTING, now + scaler.delay_s
            record_change(world, number, now, STARTED)
            return True
    return False


def let_one_go(world: Any, scaler: Any, now: float) -> None:
    """Of a pool's replicas one that starts is stopped, the last; or the one with fewest requests drained."""
    chosen = NOBODY
    for number in range(scaler.first, scaler.end):
        if world.own[number].state == STARTING:
            chosen = number
    if chosen != NOBODY:
        stop(world, chosen, now)
        return
    for number in range(scaler.first, scaler.end):
        own = world.own[number]
        if own.state == UP and (chosen == NOBODY or own.num_outstanding <= world.own[chosen].num_outstanding):
            chosen = number
    if chosen != NOBODY:
        world.own[chosen].state = DRAINING
        record_change(world, chosen, now, DRAINED)
        stop_if_empty(world, chosen, now)


def stop_if_empty(world: Any, number: int, now: float) -> None:
    """A replica that is let go is stopped when its last request has left, and its KV."""
    own = world.own[number]
    if own.state == DRAINING and own.num_outstanding == own.num_sending == own.num_begun == 0:
        stop(world, number, now)


def stop(world: Any, number: int, now: float) -> None:
    """A replica is there no more."""
    own = world.own[number]
    own.state = STOPPED
    own.back_at_s = own.fails_at_s = inf
    record_change(world, number, now, STOPPED_NOW)
