"""Routers: which replica gets a request.

They see the replicas as they stand at the instant of arrival, before any step that ends then, or as they
stood up to `ROUTER.refresh_s` seconds ago. Of equal replicas the first is taken.
"""

from __future__ import annotations

from typing import Any

from cbsim.base.binding import apart
from cbsim.core.layout import (
    DECODE_STAGE,
    ENTRY,
    KV_AWARE,
    LEAST_EXPECTED_TTFT,
    LEAST_KV,
    LEAST_SCORE,
    NOBODY,
    POWER_OF_TWO,
    PREFIX_AFFINITY,
    RANDOM,
    ROUND_ROBIN,
    SESSION_AFFINITY,
    UP,
)
from cbsim.core.pool import find_prefix


def score(self: Any, request: Any) -> float:
    """How little a replica suits a request: a third party's rule."""
    return 0.0


@apart
def choose(world: Any, request: Any, now: float) -> int:
    """The number of the replica that gets the request, `NOBODY` if none takes it.

    Asking changes nothing but what the router has seen: see `routed`.
    """
    router = world.routers[request.stage]
    if router.refresh_s > 0.0:
        look(world, router, now)
    kind = router.kind
    partner = partner_of(world, request)
    if partner != NOBODY and is_open(world, router, partner):
        return int(partner)
    if kind == ROUND_ROBIN:
        return nth_open(world, router, router.next - router.first, 0)
    if kind == RANDOM:
        return nth_open(world, router, 0, request.route)
    if kind == POWER_OF_TWO:
        return better_of_two(world, router, request)
    if kind in (PREFIX_AFFINITY, SESSION_AFFINITY) and request.affinity != NOBODY:
        home = world.homes[request.stage][request.affinity]
        if home != NOBODY and is_open(world, router, home):
            return int(home)
    least, least_score = NOBODY, 0.0
    for number in range(router.first, router.end):
        if is_open(world, router, number):
            of_this = score_of(world, router, request, number, now)
            if least == NOBODY or of_this < least_score:
                least, least_score = number, of_this
    return int(least)


def is_open(world: Any, router: Any, number: int) -> bool:
    """Whether a replica takes a request: it is up, and fewer wait there than may."""
    own = world.own[number]
    if own.state != UP:
        return False
    num_waiting = own.num_waiting + own.num_holding
    if router.max_queue == NOBODY or num_waiting < router.max_queue:
        return True
    return bool(num_waiting == 0 and own.num_outstanding < world.config[number].max_num_seqs)


def is_always_open(world: Any, router: Any, number: int) -> bool:
    """Where replicas neither come nor go and take all requests."""
    return True


def partner_of(world: Any, request: Any) -> int:
    """The replica chosen at its arrival to decode a request that comes to be decoded, else `NOBODY`."""
    if request.stage == ENTRY or world.routers[ENTRY].chooses_pairs == 0:
        return NOBODY
    return int(world.extras[request.index].partner)


def nth_open(world: Any, router: Any, start: int, nth: int) -> int:
    """Of the replicas that take requests, the one at place `nth` from place `start` on, around and around."""
    num_replicas, num_open = router.end - router.first, num_that_are_open(world, router)
    if num_open == 0:
        return NOBODY
    nth %= num_open
    place = start % num_replicas
    while True:
        number = router.first + place
        if is_open(world, router, number):
            if nth == 0:
                return int(number)
            nth -= 1
        place = (place + 1) % num_replicas


def num_that_are_open(world: Any, router: Any) -> int:
    """How many replicas take requests."""
    num_open = 0
    for number in range(router.first, router.end):
        num_open += is_open(world, router, number)
    return num_open


def better_of_two(world: Any, router: Any, request: Any) -> int:
    """The one with fewer requests of two that are drawn (Mitzenmacher, IEEE TPDS 2001)."""
    num_open = num_that_are_open(world, router)
    one = nth_open(world, router, 0, request.route)
    if num_open < 2:
        return one
    nth = request.route % num_open
    other = nth_open(world, router, 0, nth + 1 + request.route // num_open % (num_open - 1))
    if one > other:
        one, other = other, one
    return other if num_here(world, router, other) < num_here(world, router, one) else one


def score_of(world: Any, router: Any, request: Any, number: int, now: float) -> float:
    """What a router compares of a replica; the least is taken."""
    own, kind = world.own[number], router.kind
    if kind == LEAST_KV:
        return float(num_blocks_used(router, own))
    if kind == KV_AWARE:
        # As NVIDIA Dynamo's KV router has it: blocks to be computed, weighted, and blocks in use.
        num_blocks = num_to_compute(world, router, request, number) / own.block_size
        return float(router.weight * num_blocks + num_blocks_used(router, own))
    if kind == LEAST_EXPECTED_TTFT:
        return expected_ttft_s(world, router, request, number, now)
    if kind == LEAST_SCORE:
        return float(score(world.replicas[number], request))
    return float(num_here(world, router, number))


def num_here(world: Any, router: Any, number: int) -> int:
    """Requests of a replica that have not ended, with those promised to it."""
    own = world.own[number]
    return int((own.seen_outstanding if router.refresh_s > 0.0 else own.num_outstanding) + own.num_promised)


def num_blocks_used(router: Any, own: Any) -> int:
    """KV blocks of a replica that are in use."""
    return int(own.seen_blocks if router.refresh_s > 0.0 else own.num_blocks - own.num_free)


@apart
def num_to_compute(world: Any, router: Any, request: Any, number: int) -> int:
    """Prompt tokens that a replica would have to compute until a request's are done: owed, and its own but
    those that the prefix cache holds now.
    """
    own = world.own[number]
    num_owed = own.seen_owed_tokens if router.refresh_s > 0.0 else own.num_owed_tokens
    num_cached, _ = find_prefix(world.replicas[number], request)
    return int(num_owed + request.num_prompt_tokens - num_cached)


def expected_ttft_s(world: Any, router: Any, request: Any, number: int, now: float) -> float:
    """Seconds to the first token: what is left of the step under way, and the prompts before it."""
    own = world.own[number]
    left_s = own.next_s - now if own.num_begun and own.next_s > now else 0.0
    num_tokens = num_to_compute(world, router, request, number)
    return float(left_s + num_tokens * world.config[number].prefill_token_s * own.slowdown)


@apart
def look(world: Any, router: Any, now: float) -> None:
    """Take down how the replicas stand, if what is known of them is old."""
    if now < router.seen_at_s + router.refresh_s:
        return
    router.seen_at_s = now
    for number in range(router.first, router.end):
        own = world.own[number]
        own.seen_outstanding = own.num_outstanding
        own.seen_blocks = own.num_blocks - own.num_free
        own.seen_owed_tokens = own.num_owed_tokens


def routed(world: Any, request: Any, chosen: int) -> None:
    """The router remembers where a request went."""
    router = world.routers[request.stage]
    router.next = chosen + 1 if chosen + 1 < router.end else router.first
    if router.kind in (PREFIX_AFFINITY, SESSION_AFFINITY) and request.affinity != NOBODY:
        world.homes[request.stage][request.affinity] = chosen


@apart
def choose_partner(world: Any, request: Any, now: float) -> None:
    """Choose who is to decode a request that has come to have its prompt computed, and promise it."""
    extra = world.extras[request.index]
    extra.partner = NOBODY
    if extra.is_remote_decode:
        request.stage = DECODE_STAGE
        extra.partner = choose(world, request, now)
        request.stage = ENTRY
        if extra.partner != NOBODY:
            world.own[extra.partner].num_promised += 1


def break_promise(world: Any, request: Any) -> None:
    """A request comes to be decoded, or no longer will."""
    extra = world.extras[request.index]
    if extra.partner != NOBODY:
        world.own[extra.partner].num_promised -= 1
        extra.partner = NOBODY
