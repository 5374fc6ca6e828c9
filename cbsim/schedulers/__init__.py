"""Schedulers by name: the ladder from static batches to vLLM."""

from cbsim.base.registry import Registry
from cbsim.schedulers.scheduler import Means, Scheduler, SchedulerConfig

SCHEDULERS: Registry[Scheduler] = Registry(
    "scheduler",
    "cbsim.schedulers",
    Scheduler,
    {
        "static": "cbsim.schedulers.static:StaticScheduler",
        "continuous": "cbsim.schedulers.continuous:ContinuousScheduler",
        "chunked_prefill": "cbsim.schedulers.chunked_prefill:ChunkedPrefillScheduler",
        "preemptive": "cbsim.schedulers.preemptive:PreemptiveScheduler",
        "vllm": "cbsim.schedulers.vllm:VllmScheduler",
    },
)

__all__ = ["SCHEDULERS", "Means", "Scheduler", "SchedulerConfig"]
