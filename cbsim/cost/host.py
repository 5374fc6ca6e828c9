"""HostTime: what the host's work makes of a step's time on the GPU."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

Host = Literal["async", "sync", "none"]


class HostTime(NamedTuple):
    """A step takes `max(gpu, hidden) + added`, each linear in the requests of the step, in seconds.

    Rounding is monotone, so `max(gpu + added, hidden + added)` is the same number to the last bit.
    """

    hidden_step_s: float = 0.0
    hidden_request_s: float = 0.0
    added_step_s: float = 0.0
    added_request_s: float = 0.0

    @classmethod
    def of(cls, host: Host, step_s: float, request_s: float, gap_s: float) -> HostTime:
        """Of a host that works beside the GPU (and then leaves a gap), before it, or not at all."""
        if host == "async":
            return cls(step_s, request_s, gap_s, 0.0)
        return cls(added_step_s=step_s, added_request_s=request_s) if host == "sync" else cls()


def hidden_s(host: Any, num_requests: Any) -> Any:
    """Host seconds that the GPU's own hide; `host` is a `HostTime`."""
    return host.hidden_step_s + host.hidden_request_s * num_requests


def added_s(host: Any, num_requests: Any) -> Any:
    """Host seconds on top."""
    return host.added_step_s + host.added_request_s * num_requests


def with_host_s(host: Any, gpu_s: Any, num_requests: Any) -> Any:
    """Seconds of a step of `num_requests` requests that takes the GPU `gpu_s`."""
    least_s = hidden_s(host, num_requests)
    return (gpu_s if gpu_s > least_s else least_s) + added_s(host, num_requests)
