"""Workloads by name."""

from cbsim.base.registry import Registry
from cbsim.workload.request_source import Workload, WorkloadConfig

WORKLOADS: Registry[Workload] = Registry(
    "workload",
    "cbsim.workloads",
    Workload,  # type: ignore[type-abstract]
    {
        "trace": "cbsim.workload.trace:TraceWorkload",
        "resampled": "cbsim.workload.trace:ResampledWorkload",
        "synthetic": "cbsim.workload.synthetic:SyntheticWorkload",
    },
)

__all__ = ["WORKLOADS", "Workload", "WorkloadConfig"]
