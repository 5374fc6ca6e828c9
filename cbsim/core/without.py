"""What stands for rules of a world in a run that has no use for them, so that less is compiled and asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cbsim.core.changes import changes_first, nothing_changes
from cbsim.core.clients import go_on
from cbsim.core.feed import begin_together, find_nobody, send_held, settle_after
from cbsim.core.links import begin_in_tiers, begin_transfers, end_transfers, let_go
from cbsim.core.pool import store_computed
from cbsim.core.routing import choose_partner, is_always_open, is_open, look, num_to_compute
from cbsim.core.tiers import load, num_in_tiers, read_s, store_evicted

Stand = dict[Callable[..., Any], Callable[..., Any]]
"""By the rule that each stands for."""


def begin_alone(world: Any, at_s: float) -> bool:
    """No ranks work in step."""
    return True


def go_on_nowhere(world: Any, request: Any, before: Any, now: float) -> None:
    """Nobody goes on elsewhere."""


def send_nothing(world: Any, self: Any, now: float) -> None:
    """Nothing is sent."""


def end_nothing(world: Any) -> None:
    """No transfer is under way."""


def let_nobody_go(world: Any, request: Any, now: float) -> None:
    """Nobody was handed over."""


def promise_nothing(world: Any, request: Any, now: float) -> None:
    """Nobody is promised to anybody."""


def find_all_open(world: Any, router: Any, request: Any, now: float) -> None:
    """Some replica takes every request."""


def hold_nobody(world: Any, now: float) -> None:
    """Nobody waits at a router."""


def change_nothing(world: Any, self: Any, first_event: int, now: float) -> None:
    """Nothing follows."""


def look_at_nothing(world: Any, router: Any, now: float) -> None:
    """The router knows all that there is."""


def compute_all(world: Any, router: Any, request: Any, number: int) -> int:
    """No router asks."""
    return 0


def store_nothing(self: Any, what: Any) -> None:
    """There are no tiers."""


def find_in_no_tier(self: Any, request: Any, num_cached: int, num_known: int) -> int:
    """There are no tiers."""
    return 0


def load_nothing(self: Any, request: Any, num_cached: int, num_below: int, num_tokens: int) -> int:
    """There are no tiers."""
    return 0


def read_nothing(self: Any, request: Any, num_cached: int, num_below: int) -> float:
    """There are no tiers."""
    return 0.0


WITHOUT_TIERS: Stand = {
    store_computed: store_nothing,
    store_evicted: store_nothing,
    num_in_tiers: find_in_no_tier,
    load: load_nothing,
    read_s: read_nothing,
    begin_in_tiers: send_nothing,
}
WITHOUT_RANKS: Stand = {begin_together: begin_alone}
WITHOUT_LINKS: Stand = {
    begin_transfers: send_nothing,
    end_transfers: end_nothing,
    let_go: let_nobody_go,
    choose_partner: promise_nothing,
    go_on: go_on_nowhere,
}
"""Where each request comes to one replica, once."""
WITHOUT_CHANGES: Stand = {
    changes_first: nothing_changes,
    settle_after: change_nothing,
    find_nobody: find_all_open,
    send_held: hold_nobody,
    is_open: is_always_open,
    look: look_at_nothing,
    num_to_compute: compute_all,
}
"""Where nothing changes by itself and routers see no more than how replicas stand."""
