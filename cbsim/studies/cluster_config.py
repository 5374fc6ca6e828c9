"""Clusters: pools of replicas that differ, what connects them, and who gets which request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from cbsim.config.section import Section

RouterName = Literal["round_robin", "random", "least_outstanding", "least_kv", "prefix_affinity"]
SECTIONS = ("gpu", "parallel", "scheduler", "kv_cache", "cost_model")
"""What a pool may have of its own."""


class PoolConfig(Section):
    """Equal replicas. What is left out is the experiment's; a mapping without `type` and `name` changes the
    keys that it has.
    """

    name: str = Field(pattern=r"^[\w-]{1,40}$")
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


class ClusterConfig(Section):
    """Pools of replicas: all of them serve requests whole, or some compute prompts and others decode."""

    pools: list[PoolConfig] = Field(min_length=1, max_length=1000)
    """The pools."""
    router: RouterName = "round_robin"
    """Which replica an arriving request goes to, of those that serve it whole or compute its prompt."""
    decode_router: RouterName = "least_outstanding"
    """Which replica takes a request over."""
    link: LinkConfig = Field(default_factory=LinkConfig)
    """Between those that compute prompts and those that decode."""

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
        return self

    @property
    def draws(self) -> bool:
        """Whether the seed decides where requests go."""
        return "random" in (self.router, self.decode_router)

    @property
    def is_staged(self) -> bool:
        """Whether requests are handed over."""
        return self.pools[0].role != "both"
