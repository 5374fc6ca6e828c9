"""Routers: which replica gets a request.

They see the replicas as they stand at the instant of arrival, before any step that ends then.
"""

from __future__ import annotations

from typing import Any

from cbsim.core.layout import LEAST_KV, NOBODY, PREFIX_AFFINITY, RANDOM, ROUND_ROBIN


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
