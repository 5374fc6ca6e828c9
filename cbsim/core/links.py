"""Links: KV caches that go from replica to replica, and blocks to and from tiers, at rates that they share.

A replica sends and takes in at most `LINK.bytes_per_s`, a tier its own `bytes_per_s`; a transfer has the
share of the busier of its two ends: that over the transfers under way there. What a replica writes to a tier
goes in order: all that has come up while the last of it was under way makes one transfer.
"""

from __future__ import annotations

from math import inf
from typing import Any

from cbsim.base.binding import apart
from cbsim.core.layout import LOADING, NOBODY, READ_IN_STEP, SENDING, WRITTEN
from cbsim.core.loop import ask_at
from cbsim.core.tiers import end_write, num_to_write


@apart
def begin_transfers(world: Any, self: Any, now: float) -> None:
    """Put under way what a replica has made room for, and what it reads and writes below."""
    if self.own.num_tiers:
        begin_in_tiers(world, self, now)
    if world.link.is_down:
        return
    for place in range(self.own.num_transfers):
        row = self.transfers[place]
        extra = world.extras[row]
        if extra.transfer == LOADING and extra.transfer_end_s == inf and extra.awaits_link:
            extra.awaits_link = 0
            put_on_link(world, world.requests[row], now)


@apart
def begin_in_tiers(world: Any, self: Any, now: float) -> None:
    """Put under way what a replica loads from its tiers, reads there within a step, and writes."""
    for place in range(self.own.num_transfers):
        row = int(self.transfers[place])
        if world.extras[row].transfer == LOADING and world.extras[row].transfer_end_s == inf:
            for tier in range(self.own.num_tiers):
                if self.loads[row][tier]:
                    read_from_tier(world, self, tier, row, int(self.loads[row][tier]), now)
                    self.loads[row][tier] = 0
    for tier in range(self.own.num_tiers):
        of = self.tiers[self.stores[tier]]
        if of.num_to_read:
            read_from_tier(world, self, tier, READ_IN_STEP, int(of.num_to_read), now)
            of.num_to_read = 0
        num_blocks = num_to_write(self, self.stores[tier])
        if num_blocks:
            end = end_of_tier(world, self, tier)
            above = end_of_tier(world, self, tier - 1) if tier else end
            put_under_way(world, WRITTEN, self.own.replica, above, end, num_blocks * of.block_bytes, now)


def end_of_tier(world: Any, self: Any, tier: int) -> int:
    """A tier of a replica as an end of transfers."""
    return int(len(world.own) + self.stores[tier])


def read_from_tier(world: Any, self: Any, tier: int, row: int, num_blocks: int, now: float) -> None:
    """Blocks begin to come from a tier: for a visit, or for a step, with all that is read there now."""
    end, num_bytes = end_of_tier(world, self, tier), num_blocks * self.tiers[self.stores[tier]].block_bytes
    if row == READ_IN_STEP:
        for place in range(world.link.num_transfers):
            transfer = world.on_link[place]
            if transfer.request == row and transfer.replica == self.own.replica and transfer.sender == end:
                settle(world, now)
                transfer.left_bytes += num_bytes
                set_rates(world)
                return
    put_under_way(world, row, self.own.replica, end, end, num_bytes, now)


def put_on_link(world: Any, request: Any, now: float) -> None:
    """The KV of a request's prompt begins to come to the replica where it will decode."""
    link, before, extra = world.link, world.requests[request.previous], world.extras[request.index]
    # The last token's KV is not there yet: it is what the first step here computes.
    num_tokens = extra.num_external_tokens - extra.num_below_tokens - 1
    num_bytes = num_tokens * link.bytes_per_token
    if link.is_layered:
        before_s = before.last_token_at_s - before.first_scheduled_at_s
        num_bytes = max(num_bytes / link.num_layers, num_bytes - before_s * link.bytes_per_s)
    put_under_way(world, request.index, request.replica, before.replica, request.replica, num_bytes, now)


@apart
def put_under_way(
    world: Any, row: int, replica: int, sender: int, receiver: int, num_bytes: float, now: float
) -> None:
    """A transfer begins."""
    settle(world, now)
    transfer = world.on_link[world.link.num_transfers]
    world.link.num_transfers += 1
    transfer.request, transfer.replica, transfer.left_bytes = row, replica, num_bytes
    transfer.sender, transfer.receiver = sender, receiver
    count_at_ends(world, transfer, 1)
    set_rates(world)


def count_at_ends(world: Any, transfer: Any, change: int) -> None:
    """Count a transfer at its two ends, which may be the same."""
    count_at(world, transfer.sender, change)
    if transfer.receiver != transfer.sender:
        count_at(world, transfer.receiver, change)


def count_at(world: Any, end: int, change: int) -> None:
    """One transfer more or less at an end."""
    if end < len(world.own):
        world.own[end].num_links += change
    else:
        world.tiers[end - len(world.own)].num_links += change


def share_at(world: Any, end: int) -> float:
    """Bytes a second that each transfer may have at an end."""
    if end < len(world.own):
        return float(world.link.bytes_per_s / world.own[end].num_links)
    tier = world.tiers[end - len(world.own)]
    return float(tier.bytes_per_s / tier.num_links)


@apart
def drop_transfers(world: Any, row: int, replica: int, now: float) -> None:
    """What comes for the request in a row is no longer wanted, nor what a replica that has failed writes.

    `NOBODY` stands for no replica, and for no request.
    """
    settle(world, now)
    num_left = 0
    for place in range(world.link.num_transfers):
        transfer = world.on_link[place]
        is_for_row = row != NOBODY and transfer.request == row
        if is_for_row or (transfer.request < 0 and transfer.replica == replica):
            count_at_ends(world, transfer, -1)
        else:
            copy_transfer(transfer, world.on_link[num_left])
            num_left += 1
    world.link.num_transfers = num_left
    set_rates(world)


def copy_transfer(source: Any, target: Any) -> None:
    """Field by field: an assignment of the whole would name the same object in a list."""
    target.request, target.sender, target.receiver = source.request, source.sender, source.receiver
    target.left_bytes, target.end_s, target.replica = source.left_bytes, source.end_s, source.replica
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
        transfer.bytes_per_s = min(share_at(world, transfer.sender), share_at(world, transfer.receiver))
        transfer.end_s = link.now + transfer.left_bytes / transfer.bytes_per_s
        link.next_s = min(link.next_s, transfer.end_s)


@apart
def end_transfers(world: Any) -> None:
    """The transfers that are done next have come, but for the latency; what waited to be written goes on."""
    link = world.link
    now = link.next_s
    settle(world, now)
    world.clients.now = now
    num_left = 0
    for place in range(link.num_transfers):
        transfer = world.on_link[place]
        if transfer.end_s <= now and not goes_on(world, transfer, now):
            count_at_ends(world, transfer, -1)
        else:
            copy_transfer(transfer, world.on_link[num_left])
            num_left += 1
    link.num_transfers = num_left
    set_rates(world)


def goes_on(world: Any, transfer: Any, now: float) -> bool:
    """Take what a transfer has brought; whether it goes on, as a replica has more to write."""
    self = world.replicas[transfer.replica]
    if transfer.request == WRITTEN:
        place = transfer.receiver - len(world.own)
        end_write(self, place)
        num_blocks = num_to_write(self, place)
        transfer.left_bytes = num_blocks * world.tiers[place].block_bytes
        return num_blocks > 0
    if transfer.request == READ_IN_STEP:
        return False
    request = world.requests[transfer.request]
    extra, is_on_link = world.extras[request.index], transfer.sender < len(world.own)
    at_s = now + (
        world.link.latency_s if is_on_link else world.tiers[transfer.sender - len(world.own)].latency_s
    )
    extra.came_s = max(extra.came_s, at_s)
    extra.num_to_come -= 1
    if extra.num_to_come == 0:
        extra.transfer_end_s = extra.came_s
        wake(world, int(transfer.replica), extra.came_s)
    if is_on_link:
        world.extras[request.previous].transfer_end_s = at_s
        wake(world, int(transfer.sender), at_s)
    return False


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
