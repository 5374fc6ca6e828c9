"""Routers: which replica an arriving request goes to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from cbsim.workload.request import Request


class Engine(Protocol):
    """What routers see of a replica."""

    @property
    def num_outstanding(self) -> int:
        """Requests submitted and not ended."""

    @property
    def num_blocks_used(self) -> int:
        """KV blocks held by requests."""


class Router(ABC):
    """Sees the replicas as they stand at the instant of arrival, before any step that ends then."""

    reads_state = False
    """Whether choosing looks at the replicas, so that they must be brought up to the instant first."""
    reads_blocks = False
    """Whether choosing looks at the KV blocks of the replicas, which change with every step."""

    @abstractmethod
    def choose(self, request: Request, engines: Sequence[Engine]) -> int:
        """The number of the replica that gets the request."""


class RoundRobin(Router):
    """Each replica in turn."""

    def __init__(self) -> None:
        self._next = 0

    def choose(self, request: Request, engines: Sequence[Engine]) -> int:
        """See `Router.choose`."""
        chosen = self._next
        self._next = (chosen + 1) % len(engines)
        return chosen


class Random(Router):
    """Any replica with equal chance, from a stream of the experiment's seed."""

    def __init__(self, generator: np.random.Generator) -> None:
        self._generator = generator

    def choose(self, request: Request, engines: Sequence[Engine]) -> int:
        """See `Router.choose`."""
        return int(self._generator.integers(len(engines)))


class Least(Router):
    """The replica with the least `load`; of several, the one with the lowest number."""

    reads_state = True

    def __init__(self, load: Callable[[Engine], int], *, reads_blocks: bool = False) -> None:
        self._load = load
        self.reads_blocks = reads_blocks

    def choose(self, request: Request, engines: Sequence[Engine]) -> int:
        """See `Router.choose`."""
        return min(range(len(engines)), key=lambda i: self._load(engines[i]))


class PrefixAffinity(Router):
    """Requests of one session, else with the same first prompt segment, stay together.

    The first of them goes to the replica with the fewest outstanding requests.
    """

    reads_state = True

    def __init__(self) -> None:
        self._home: dict[str, int] = {}

    def choose(self, request: Request, engines: Sequence[Engine]) -> int:
        """See `Router.choose`."""
        if request.session_id is not None:
            prefix = f"session:{request.session_id}"
        elif request.prompt:
            prefix = f"segment:{request.prompt[0][0]}"
        else:
            return _fewest_outstanding(engines)
        if prefix not in self._home:
            self._home[prefix] = _fewest_outstanding(engines)
        return self._home[prefix]


def make_router(name: str, seed: int) -> Router:
    """The router that the experiment names; its random stream is spawned from the seed by purpose."""
    match name:
        case "round_robin":
            return RoundRobin()
        case "random":
            return Random(np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(ROUTER_STREAM,))))
        case "least_outstanding":
            return Least(lambda engine: engine.num_outstanding)
        case "least_kv":
            return Least(lambda engine: engine.num_blocks_used, reads_blocks=True)
        case "prefix_affinity":
            return PrefixAffinity()
    raise ValueError(f"no router '{name}'")


ROUTER_STREAM = 0x726F7574
"""Spawn key of the router's random stream."""


def _fewest_outstanding(engines: Sequence[Engine]) -> int:
    return min(range(len(engines)), key=lambda i: engines[i].num_outstanding)
