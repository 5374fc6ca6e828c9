"""Router and Autoscaler: parts that users may write, as settings and a rule for the core to call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from pydantic import Field

from cbsim.base.registry import Registry
from cbsim.config.section import ComponentConfig
from cbsim.core import layout

Rules = Mapping[str, Callable[..., Any]]


class RouterConfig(ComponentConfig):
    """Settings that every router has."""

    refresh_s: float = Field(default=0.0, ge=0)
    """How old what the router knows of the replicas' load may be, seconds: it looks again when a request
    comes and this time has passed. 0: it sees them as they are. Prefix hits are always those of the
    moment."""


class Router:
    """Which replica a request goes to. Never instantiated.

    A third party's has a plain function `score(self, request)`, a number for a replica `self` (a
    `cbsim.core.layout.Replica`) and a request (`layout.REQUEST`); the replica with the least gets it.
    """

    Config: ClassVar[type[RouterConfig]] = RouterConfig
    kind: ClassVar[int] = layout.LEAST_SCORE
    draws: ClassVar[bool] = False
    """Whether random numbers decide."""

    @classmethod
    def rules(cls) -> Rules:
        """The rule that the core calls by its name."""
        found = vars(cls).get("score")
        return {} if found is None else {"score": found}


class RoundRobin(Router):
    """One after the other."""

    kind = layout.ROUND_ROBIN


class Random(Router):
    """Any of them, drawn from the seed."""

    kind = layout.RANDOM
    draws = True


class LeastOutstanding(Router):
    """The one with the fewest requests that have not ended."""

    kind = layout.LEAST_OUTSTANDING


class LeastKv(Router):
    """The one with the fewest KV blocks in use."""

    kind = layout.LEAST_KV


class PrefixAffinity(Router):
    """Requests of one session, else with the same first prompt segment, stay together."""

    kind = layout.PREFIX_AFFINITY


class PowerOfTwo(Router):
    """The one with fewer requests of two that are drawn."""

    kind = layout.POWER_OF_TWO
    draws = True


class SessionAffinity(Router):
    """Requests of one session stay together; others go to the one with the fewest."""

    kind = layout.SESSION_AFFINITY


class KvAwareConfig(RouterConfig):
    """Prefix hits against load."""

    weight: float = Field(default=1.0, ge=0, le=1e6)
    """What a block of prompt that must be computed counts, against a block in use."""


class KvAware(Router):
    """The least sum of prompt blocks to be computed there, times `weight`, and KV blocks in use."""

    Config = KvAwareConfig
    kind = layout.KV_AWARE


class LeastExpectedTtft(Router):
    """The one where the first token is expected soonest: by prompts owed, prefix hits and its speed."""

    kind = layout.LEAST_EXPECTED_TTFT


ROUTERS: Registry[Router] = Registry(
    "router",
    "cbsim.routers",
    Router,
    {
        "round_robin": "cbsim.cluster.router:RoundRobin",
        "random": "cbsim.cluster.router:Random",
        "least_outstanding": "cbsim.cluster.router:LeastOutstanding",
        "least_kv": "cbsim.cluster.router:LeastKv",
        "prefix_affinity": "cbsim.cluster.router:PrefixAffinity",
        "power_of_two": "cbsim.cluster.router:PowerOfTwo",
        "session_affinity": "cbsim.cluster.router:SessionAffinity",
        "kv_aware": "cbsim.cluster.router:KvAware",
        "least_expected_ttft": "cbsim.cluster.router:LeastExpectedTtft",
    },
)
