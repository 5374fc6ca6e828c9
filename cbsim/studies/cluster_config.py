"""Clusters: pools of replicas that differ, what connects them, and who gets which request."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from cbsim.cluster.autoscaler import AUTOSCALERS
from cbsim.cluster.router import ROUTERS, RouterConfig
from cbsim.config.section import ByType, ComponentConfig, Section

SECTIONS = ("gpu", "parallel", "scheduler", "kv_cache", "cost_model")
"""What a pool may have of its own."""


class PoolConfig(Section):
    """Equal replicas. What is left out is the experiment's; a mapping without `type` and `name` changes the
    keys that it has.
    """

    name: str
    """What tables call it."""
    role: Literal["both", "prefill", "decode"] = "both"
    """Whether its replicas serve requests whole, compute prompts and hand them over, or take them over."""
    count: int = Field(default=1, ge=1, le=100_000)
    """How many replicas."""
    gpu: Any = None
    """Its GPU."""
    parallel: Any = None
    """How the GPUs of a replica share the model."""
    scheduler: Any = None
    """Its scheduler, of the experiment's `type`."""
    kv_cache: Any = None
    """Its memory for keys and values."""
    cost_model: Any = None
    """How long its steps take."""
    autoscale: Annotated[ComponentConfig, ByType(AUTOSCALERS)] | None = None
    """How it grows and shrinks, from `count` replicas on; null: as `cluster.autoscale` says."""

    @field_validator("name")
    @classmethod
    def _is_short(cls, name: str) -> str:
        if not re.fullmatch(r"[\w-]{1,40}", name):
            raise ValueError(f"got {name!r}; expected 1 to 40 letters, digits, _ and -")
        return name

    def settings(self, of_all: Mapping[str, Any]) -> dict[str, Any]:
        """The experiment's settings, resolved, with this pool's in their place."""
        settings = {**of_all, "replicas": {"count": self.count}}
        for name in SECTIONS:
            own = getattr(self, name)
            if own is not None:
                settings[name] = _merged(of_all.get(name), own)
        return settings


def _merged(general: Any, own: Any) -> Any:
    """A section with some of its keys changed; one that has a type or a name stands for itself."""
    if not isinstance(own, Mapping) or not isinstance(general, Mapping) or own.keys() & {"type", "name"}:
        return own
    return {**general, **{key: _merged(general.get(key), value) for key, value in own.items()}}


class LinkConfig(Section):
    """What KV caches are handed over on: each replica sends and takes in so much, shared by its transfers."""

    bandwidth_gb_s: float = Field(default=50.0, gt=0)
    """1e9 bytes a second that a replica's GPUs together send or take in (50: a network of 400 Gbit/s)."""
    latency_s: float = Field(default=1e-5, ge=0)
    """Seconds from the last byte sent to its being there."""
    layer_by_layer: bool = False
    """Whether the KV of a layer is sent while the next layers are computed, so that with a fast link only the
    last one's is waited for; else all of it is sent after the prompt."""


class FaultConfig(Section):
    """Something fails, or is slow, at an instant."""

    pool: str | None = None
    """The pool of the replica; null, with `link: true`: the link."""
    replica: int = Field(default=0, ge=0)
    """Which of its replicas, from 0."""
    link: bool = False
    """The link between prefill and decode fails: transfers under way are lost, and none begin."""
    at_s: float = Field(ge=0)
    """When, seconds."""
    repair_s: float | None = Field(default=None, gt=0)
    """Seconds until it is well again; null: never."""
    slowdown: float = Field(default=1.0, ge=1, le=1000)
    """Above 1 the replica does not fail: its steps last so many times as long."""

    @model_validator(mode="after")
    def _has_a_place(self) -> Self:
        if self.link == (self.pool is not None):
            raise ValueError("got neither or both of pool and link; expected a pool, or link: true")
        if self.repair_s is None and (self.link or self.slowdown > 1):
            raise ValueError("repair_s: is missing; needed for a link and with slowdown")
        return self


class DrawnFaults(Section):
    """Every replica fails now and then."""

    mtbf_s: float = Field(gt=0)
    """Mean time between failures: from when a replica is well until it fails, seconds, exponentially
    distributed."""
    repair_s: float = Field(gt=0)
    """Seconds until it takes requests again."""


class ClientsConfig(Section):
    """What clients do when they wait too long or are refused."""

    first_token_timeout_s: float | None = Field(default=None, gt=0)
    """Longest wait for the first token, seconds from sending; null: any."""
    timeout_s: float | None = Field(default=None, gt=0)
    """Longest wait for the last token; null: any."""
    max_retries: int = Field(default=0, ge=0, le=20)
    """How often a client sends again that was refused or has stopped waiting. It starts anew: tokens that had
    come are thrown away, and latencies count from when it first sent."""
    backoff_s: float = Field(default=1.0, ge=0)
    """Seconds until it does, doubled each time."""


class ClusterConfig(Section):
    """Pools of replicas: all of them serve requests whole, or some compute prompts and others decode."""

    pools: list[PoolConfig] = Field(min_length=1, max_length=1000)
    """The pools. `--set` and `sweep` name one by its place or its name: `cluster.pools.prefill.count`."""
    router: Annotated[ComponentConfig, ByType(ROUTERS, "round_robin")] = RouterConfig(type="round_robin")
    """Which replica an arriving request goes to, of those that serve it whole or compute its prompt."""
    decode_router: Annotated[ComponentConfig, ByType(ROUTERS, "least_outstanding")] = RouterConfig(
        type="least_outstanding"
    )
    """Which replica takes a request over."""
    decode_chosen_at: Literal["hand_over", "arrival"] = "hand_over"
    """When: as its KV is to be sent, or beforehand, so that prefill and decode are chosen as a pair."""
    link: LinkConfig = Field(default_factory=LinkConfig)
    """Between those that compute prompts and those that decode."""
    preempted: Literal["recompute", "give_back"] = "recompute"
    """What a decode replica does with a request that it preempts: computes it again itself, as vLLM does, or
    gives it back to the router, to be computed by a prefill replica and sent anew."""
    max_queue: int | None = Field(default=None, ge=0)
    """Most requests that wait at a replica; 0: it takes as many as it may run. Null: any number."""
    when_full: Literal["refuse", "hold"] = "refuse"
    """What becomes of a request that no replica takes: it is refused (as by HTTP 429), or waits at the router
    until one does."""
    autoscale: Annotated[ComponentConfig, ByType(AUTOSCALERS)] | None = None
    """How every pool grows and shrinks that does not say so itself; null: not at all."""
    faults: list[FaultConfig] | DrawnFaults = Field(default_factory=list)
    """What fails. Requests of a replica that fails lose their KV and go back to the router; the tokens that
    were sent stay."""
    max_reroutes: int = Field(default=3, ge=0, le=100)
    """How often a request may be lost and go back to the router; then it fails."""
    clients: ClientsConfig = Field(default_factory=ClientsConfig)
    """What clients do when they wait too long or are refused."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        names = [pool.name for pool in self.pools]
        for name in {name for name in names if names.count(name) > 1}:
            raise ValueError(f"pools: got '{name}' {names.count(name)} times; allowed: each name once")
        roles = {pool.role for pool in self.pools}
        if roles not in ({"both"}, {"prefill", "decode"}):
            raise ValueError(
                f"pools: got roles {', '.join(sorted(roles))}; allowed: both alone, or prefill and decode"
            )
        for fault in self.faults if isinstance(self.faults, list) else ():
            counts = {pool.name: self.most_replicas(pool) for pool in self.pools}
            if fault.link and not self.is_staged:
                raise ValueError("faults: got link: true; allowed: with pools for prefill and decode")
            if not fault.link and fault.pool not in counts:
                raise ValueError(f"faults: got pool '{fault.pool}'; allowed: {', '.join(counts)}")
            if fault.pool is not None and fault.replica >= counts[fault.pool]:
                raise ValueError(
                    f"faults: got replica {fault.replica} of pool '{fault.pool}'; allowed: 0 to "
                    f"{counts[fault.pool] - 1}"
                )
        kinds = {self.router.type, self.decode_router.type}
        if {"prefix_affinity", "session_affinity"} <= kinds:
            raise ValueError("decode_router: got session_affinity and prefix_affinity; allowed: one of them")
        if not self.is_staged and (self.preempted != "recompute" or self.decode_chosen_at != "hand_over"):
            raise ValueError("preempted, decode_chosen_at: allowed only with pools for prefill and decode")
        for pool in self.pools:
            scaling = self.scaling(pool)
            if scaling is not None and not scaling.min <= pool.count <= scaling.max:
                raise ValueError(
                    f"pools: got count {pool.count} in pool '{pool.name}'; allowed with its autoscale: "
                    f"{scaling.min} to {scaling.max}"
                )
        return self

    def scaling(self, pool: PoolConfig) -> Any:
        """The autoscaler's settings of a pool; `None` without one."""
        return pool.autoscale or self.autoscale

    def most_replicas(self, pool: PoolConfig) -> int:
        """How many replicas a pool may come to have."""
        scaling = self.scaling(pool)
        return pool.count if scaling is None else int(scaling.max)

    @property
    def without_effect(self) -> list[str]:
        """A note on each setting that changes nothing as the others are."""
        of_stages, of_queues, clients = "pools for prefill and decode", "max_queue", self.clients
        waits = clients.timeout_s or clients.first_token_timeout_s or self.max_queue is not None
        idle = {
            "cluster.link": (of_stages, not self.is_staged and self.link != LinkConfig()),
            "cluster.decode_router": (
                of_stages,
                not self.is_staged and self.decode_router.type != "least_outstanding",
            ),
            "cluster.when_full": (of_queues, self.max_queue is None and self.when_full != "refuse"),
            "cluster.clients.max_retries": (
                f"a time-out or {of_queues}",
                not waits and clients.max_retries > 0,
            ),
        }
        return [f"{key} changes nothing without {what}" for key, (what, is_idle) in idle.items() if is_idle]

    @property
    def changes(self) -> bool:
        """Whether replicas come and go, requests wait at a router, or clients stop waiting."""
        clients = self.clients
        return bool(
            self.faults
            or any(self.scaling(pool) is not None for pool in self.pools)
            or self.max_queue is not None
            or self.preempted != "recompute"
            or clients.timeout_s
            or clients.first_token_timeout_s
        )

    @property
    def draws(self) -> bool:
        """Whether the seed decides where requests go."""
        routers = (ROUTERS.get(router.type) for router in (self.router, self.decode_router))
        return isinstance(self.faults, DrawnFaults) or any(router.draws for router in routers)

    @property
    def is_staged(self) -> bool:
        """Whether requests are handed over."""
        return self.pools[0].role != "both"
