"""Host memory for the KV blocks of preempted requests, and the link to it: the settings."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from cbsim.schedulers.scheduler import SchedulerConfig


class SwapConfig(SchedulerConfig):
    """What becomes of a preempted request's KV."""

    preemption: Literal["recompute", "swap", "cheaper"] = "recompute"
    """What happens to a victim's KV: it is computed again later, moved to host memory and back, or whichever
    takes less time by the cost model."""
    swap_space_gib: float = Field(default=4.0, gt=0)
    """Host memory of a replica for swapped KV blocks, GiB; when it is full, victims are recomputed."""
    swap_bandwidth_gb_s: float | None = Field(default=None, gt=0)
    """Bandwidth between the GPUs of a replica and host memory, one way, GB/s (1e9 bytes a second); null takes
    the GPU's `host_link_gb_s`."""
    swap_latency_s: float = Field(default=1e-5, ge=0)
    """Seconds before a request's blocks begin to move, each way."""

    @field_validator("swap_space_gib", "swap_bandwidth_gb_s", "swap_latency_s")
    @classmethod
    def _serves_swap(cls, value: float | None, info: ValidationInfo) -> float | None:
        default = cls.model_fields[str(info.field_name)].default
        if value != default and info.data.get("preemption") == "recompute":
            raise ValueError(
                f"got {value:g}, which means nothing with preemption: recompute; expected swap or cheaper"
            )
        return value
