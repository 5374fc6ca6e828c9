"""Observers by name: who watches a run, told of requests and steps as they happen."""

from cbsim.base.registry import Registry
from cbsim.observers.base import Needs, ObservedRun, Observer
from cbsim.observers.step_view import StepView

OBSERVERS: Registry[Observer] = Registry(
    "observer",
    "cbsim.observers",
    Observer,
    {
        "log": "cbsim.observers.log:LogObserver",
        "metrics": "cbsim.observers.metrics:MetricsObserver",
        "memory": "cbsim.observers.memory:MemoryObserver",
        "csv": "cbsim.observers.csv:CsvObserver",
    },
)

__all__ = ["OBSERVERS", "Needs", "ObservedRun", "Observer", "StepView"]
