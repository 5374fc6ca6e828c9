"""Links between replicas: KV caches of requests that are handed over, at a rate that transfers share.

A replica sends and takes in at most `LINK.bytes_per_s`; a transfer has the share of the busier of its two
ends: that over the transfers under way there.
"""

from __future__ import annotations

from math import inf
from typing import Any

from cbsim.base.binding import apart
from cbsim.core.layout import LOADING, SENDING
from cbsim.core.loop import ask_at


@apart
def begin_transfers(world: Any, self: Any, now: float) -> None:
    """Put on the link what a replica has made room for."""
    if world.link.is_down:
        return
    for place in range(self.own.num_transfers):
        row = self.transfers[place]
        extra = world.extras[row]
        if extra.transfer == LOADING and extra.transfer_end_s == inf and not extra.is_on_link:
            extra.is_on_link = 1
            put_on_link(world, world.requests[row], now)


def put_on_link(world: Any, request: Any, now: float) -> None:
    """The KV of a request's prompt begins to come to the replica where it will decode."""
    link, before = world.link, world.requests[request.previous]
    settle(world, now)
    transfer = world.on_link[link.num_transfers]
    link.num_transfers += 1
    transfer.request, transfer.sender, transfer.receiver = request.index, before.replica, request.replica
    # The last token's KV is not there yet: it is what the first step here computes.
    num_bytes = (world.extras[request.index].num_external_tokens - 1) * link.bytes_per_token
    if link.is_layered:
        before_s = before.last_token_at_s - before.first_scheduled_at_s
        num_bytes = max(num_bytes / link.num_layers, num_bytes - before_s * link.bytes_per_s)
    transfer.left_bytes = num_bytes
    world.own[transfer.sender].num_links += 1
    world.own[transfer.receiver].num_links += 1
    set_rates(world)


@apart
def drop_transfer(world: Any, row: int, now: float) -> None:
    """The KV of a request is no longer wanted where it was going."""
    link, place = world.link, 0
    settle(world, now)
    while world.on_link[place].request != row:
        place += 1
    world.own[world.on_link[place].sender].num_links -= 1
    world.own[world.on_link[place].receiver].num_links -= 1
    link.num_transfers -= 1
    for later in range(place, link.num_transfers):
        copy_transfer(world.on_link[later + 1], world.on_link[later])
    set_rates(world)


def copy_transfer(source: Any, target: Any) -> None:
    """Field by field: an assignment of the whole would name the same object in a list."""
    target.request, target.sender, target.receiver = source.request, source.sender, source.receiver
    target.left_bytes, target.end_s = source.left_bytes, source.end_s
    target.bytes_per_s = source.bytes_per_s


def settle(world: Any, now: float) -> None:
    """Take off what has come until now."""
    link = world.link
    if now > link.now:
        for place in range(link.num_transfers):
            transfer = world.on_link[place]
            transfer.left_bytes = max(0.0, transfer.left_bytes - transfer.bytes_per_s * (now - link.now))
    link.now = now


def set_rates(world: Any) -> None:
    """How fast each transfer is from now on, and when the first will be done."""
    link = world.link
    link.next_s = inf
    for place in range(link.num_transfers):
        transfer = world.on_link[place]
        num_sharing = max(world.own[transfer.sender].num_links, world.own[transfer.receiver].num_links)
        transfer.bytes_per_s = link.bytes_per_s / num_sharing
        transfer.end_s = link.now + transfer.left_bytes / transfer.bytes_per_s
        link.next_s = min(link.next_s, transfer.end_s)


@apart
def end_transfers(world: Any) -> None:
    """The transfers that are done next have come, but for the link's latency."""
    link = world.link
    now = link.next_s
    settle(world, now)
    world.clients.now = now
    num_left = 0
    for place in range(link.num_transfers):
        transfer, kept = world.on_link[place], world.on_link[num_left]
        if transfer.end_s <= now:
            at_s = now + link.latency_s
            world.own[transfer.sender].num_links -= 1
            world.own[transfer.receiver].num_links -= 1
            request = world.requests[transfer.request]
            world.extras[request.index].transfer_end_s = at_s
            world.extras[request.previous].transfer_end_s = at_s
            wake(world, int(transfer.receiver), at_s)
            wake(world, int(transfer.sender), at_s)
        else:
            copy_transfer(transfer, kept)
            num_left += 1
    link.num_transfers = num_left
    set_rates(world)


def let_go(world: Any, request: Any, now: float) -> None:
    """Nobody will fetch the KV of a request from the replica of the visit before."""
    before = world.requests[request.previous]
    if world.extras[before.index].transfer == SENDING:
        world.extras[before.index].transfer_end_s = now
        wake(world, int(before.replica), now)


def wake(world: Any, number: int, at_s: float) -> None:
    """Have an idle replica asked at an instant, if it would not be before."""
    own = world.own[number]
    if own.num_under_way == 0 and at_s < own.next_s:
        ask_at(world.replicas[number], at_s)
        take_turn(world, number)


def take_turn(world: Any, number: int) -> None:
    """Number what comes next in a replica, and find out when, among all, that is."""
    number_turn(world, number)
    find_first(world, number)


def number_turn(world: Any, number: int) -> None:
    """At one instant, things of one kind go by their `turn`."""
    world.clients.turn += 1
    world.own[number].turn = world.clients.turn


def find_first(world: Any, number: int) -> None:
    """What comes next in a replica has changed: find out anew in which one something happens first.

    A tournament: each place of the tree names the winner of the two below it.
    """
    tree = world.first_in_order
    place = (len(tree) + number) // 2
    while place > 0:
        one, other = below(tree, 2 * place), below(tree, 2 * place + 1)
        first = one
        if comes_first(world.own[other], world.own[one]):
            first = other
        tree[place] = first
        place //= 2


def below(tree: Any, place: int) -> int:
    """The replica that stands at a place of the tree; behind its end stand all in their order."""
    return int(tree[place] if place < len(tree) else place - len(tree))


def comes_first(own: Any, other: Any) -> bool:
    """Whether what comes next in one replica comes before what does in another."""
    if own.next_s != other.next_s:
        return own.next_s < other.next_s
    if own.is_asked != other.is_asked:
        return own.is_asked < other.is_asked
    return own.turn < other.turn
