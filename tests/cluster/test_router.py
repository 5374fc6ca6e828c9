"""Routers: which replica, by hand, and that only those which must look at the replicas do."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest

from cbsim.cluster.router import ROUTERS
from cbsim.cluster.simpy_world import Router, make_router
from cbsim.workload.request import Request


@dataclass
class Replica:
    """What a router may see."""

    num_outstanding: int = 0
    num_blocks_used: int = 0


def choose(router: Router, *replicas: Replica, **request: Any) -> int:
    return router(Request("r", 0.0, 1, 1, **request), replicas)


def test_round_robin_takes_turns() -> None:
    router = make_router(ROUTERS.get("round_robin").kind, 0)
    busy = [Replica(9), Replica(0), Replica(0)]
    assert [choose(router, *busy) for _ in range(5)] == [0, 1, 2, 0, 1]


def test_random_is_even_and_its_own_stream_of_the_seed() -> None:
    replicas = [Replica(), Replica(), Replica()]

    def draws(seed: int) -> list[int]:
        router = make_router(ROUTERS.get("random").kind, seed)
        return [choose(router, *replicas) for _ in range(3000)]

    assert draws(1) == draws(1) != draws(2)
    counts = Counter(draws(1))
    # Five standard deviations of a binomial with p = 1/3.
    assert all(abs(counts[i] - 1000) < 5 * (3000 * (1 / 3) * (2 / 3)) ** 0.5 for i in range(3))


@pytest.mark.parametrize(
    ("name", "field"), [("least_outstanding", "num_outstanding"), ("least_kv", "num_blocks_used")]
)
def test_least_takes_the_smallest_and_the_first_of_equals(name: str, field: str) -> None:
    router = make_router(ROUTERS.get(name).kind, 0)
    assert choose(router, *(Replica(**{field: n}) for n in (3, 1, 2))) == 1
    assert choose(router, *(Replica(**{field: n}) for n in (2, 1, 1))) == 1
    assert choose(router, Replica(), Replica()) == 0


def test_prefix_affinity_keeps_sessions_and_prefixes_together() -> None:
    router = make_router(ROUTERS.get("prefix_affinity").kind, 0)
    assert choose(router, Replica(1), Replica(0), session_id="s") == 1
    assert choose(router, Replica(0), Replica(5), session_id="s") == 1
    assert choose(router, Replica(0), Replica(5), prompt=(("system", 1),)) == 0
    assert choose(router, Replica(9), Replica(5), prompt=(("system", 1),)) == 0
    # A session of the same name as a segment is another thing; without either the least busy serves.
    assert choose(router, Replica(9), Replica(5), session_id="system") == 1
    assert choose(router, Replica(9), Replica(5)) == 1
    assert choose(router, Replica(3), Replica(5)) == 0
