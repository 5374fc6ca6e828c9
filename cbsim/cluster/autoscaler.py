"""Autoscaler: how many replicas a pool has, as settings and a rule for the core to call."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from cbsim.base.registry import Registry
from cbsim.base.units import GIGA
from cbsim.cluster.router import Rules
from cbsim.config.section import ComponentConfig
from cbsim.core import layout


class AutoscalerConfig(ComponentConfig):
    """Settings that every autoscaler has."""

    min: int = Field(default=1, ge=1, le=100_000)
    """Fewest replicas."""
    max: int = Field(ge=1, le=100_000)
    """Most replicas."""
    interval_s: float = Field(default=15.0, gt=0)
    """Seconds between two decisions."""
    provision_s: float = Field(default=60.0, ge=0)
    """Seconds until a new machine is there."""
    load_gb_s: float = Field(default=2.0, gt=0)
    """1e9 bytes a second at which each GPU loads its weights, before the replica takes requests."""
    stabilization_s: float = Field(default=300.0, ge=0)
    """How long fewer replicas must do before any are let go, seconds; as many stay as were needed then."""

    @model_validator(mode="after")
    def _spans(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min: got {self.min} with max: {self.max}; allowed: at most max")
        return self

    @property
    def target_number(self) -> float:
        """What the figure should be."""
        return float(getattr(self, "target", 1.0))

    @property
    def planned(self) -> list[tuple[float, int]]:
        """Instants, seconds, and the number of replicas from each on."""
        return []


class Autoscaler:
    """How many replicas a pool should have. Never instantiated.

    A third party's has a plain function `desired(scaler)`: a number of replicas, from a
    `cbsim.core.layout.SCALER` that tells how the pool stands.
    """

    Config: ClassVar[type[AutoscalerConfig]] = AutoscalerConfig
    kind: ClassVar[int] = layout.BY_RULE

    @classmethod
    def rules(cls) -> Rules:
        """The rule that the core calls by its name."""
        found = vars(cls).get("desired")
        return {} if found is None else {"desired": found}


class QueueConfig(AutoscalerConfig):
    """By requests that wait."""

    target: float = Field(default=4.0, gt=0)
    """Waiting requests for each replica."""


class ByQueue(Autoscaler):
    """As many replicas as there are times `target` requests waiting."""

    Config = QueueConfig
    kind = layout.BY_QUEUE


class OutstandingConfig(AutoscalerConfig):
    """By requests that have not ended."""

    target: float = Field(default=64.0, gt=0)
    """Requests, running and waiting, for each replica."""


class ByOutstanding(Autoscaler):
    """As many replicas as there are times `target` requests."""

    Config = OutstandingConfig
    kind = layout.BY_OUTSTANDING


class KvConfig(AutoscalerConfig):
    """By KV blocks in use."""

    target: float = Field(default=0.7, gt=0, le=1)
    """Mean share of KV blocks in use."""


class ByKv(Autoscaler):
    """More or fewer, as the mean share of KV blocks in use is above or below `target`."""

    Config = KvConfig
    kind = layout.BY_KV


class TtftConfig(AutoscalerConfig):
    """By what a newcomer would wait."""

    target: float = Field(default=1.0, gt=0)
    """Seconds that a newcomer would wait for the prompts before its own."""


class ByTtft(Autoscaler):
    """More or fewer, as the prompts owed take longer or less long than `target`, seconds."""

    Config = TtftConfig
    kind = layout.BY_TTFT


class ScheduleConfig(AutoscalerConfig):
    """By the clock."""

    stabilization_s: float = Field(default=0.0, ge=0)
    """How long after a planned instant replicas are let go, seconds."""
    schedule: list[list[float]] = Field(min_length=1, max_length=10_000)
    """Pairs `[seconds, replicas]`, in order: from that instant on so many."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        for pair in self.schedule:
            if len(pair) != 2 or pair[0] < 0 or pair[1] != int(pair[1]):
                raise ValueError(f"schedule: got {pair}; allowed: pairs [seconds, replicas]")
        times = [pair[0] for pair in self.schedule]
        if sorted(set(times)) != times:
            raise ValueError("schedule: got times that don't rise; allowed: each later than the one before")
        return self

    @property
    def planned(self) -> list[tuple[float, int]]:
        """See `AutoscalerConfig.planned`."""
        return [(at_s, int(count)) for at_s, count in self.schedule]


class BySchedule(Autoscaler):
    """As many as a timetable says."""

    Config = ScheduleConfig
    kind = layout.BY_SCHEDULE


AUTOSCALERS: Registry[Autoscaler] = Registry(
    "autoscaler",
    "cbsim.autoscalers",
    Autoscaler,
    {
        "queue": "cbsim.cluster.autoscaler:ByQueue",
        "outstanding": "cbsim.cluster.autoscaler:ByOutstanding",
        "kv_utilization": "cbsim.cluster.autoscaler:ByKv",
        "ttft": "cbsim.cluster.autoscaler:ByTtft",
        "schedule": "cbsim.cluster.autoscaler:BySchedule",
    },
)


def scaler_numbers(kind: int, config: AutoscalerConfig, weight_bytes: float) -> dict[str, Any]:
    """Fields of a `layout.SCALER`; each GPU holds `weight_bytes` bytes of weights."""
    return {
        "kind": kind,
        "least": config.min,
        "most": config.max,
        "interval_s": config.interval_s,
        "target": config.target_number,
        "delay_s": config.provision_s + weight_bytes / (config.load_gb_s * GIGA),
        "stabilization_s": config.stabilization_s,
    }
