"""Observers by name: who watches a run, told of requests and steps as they happen."""

from cbsim.base.registry import Registry
from cbsim.observers.observer import Needs, ObservedRun, Observer
from cbsim.observers.views import StepView

OBSERVERS: Registry[Observer] = Registry(
    "observer",
    "cbsim.observers",
    Observer,
    {
        "log": "cbsim.observers.log_observer:LogObserver",
        "metrics": "cbsim.observers.metrics_observer:MetricsObserver",
        "memory": "cbsim.observers.memory_observer:MemoryObserver",
        "csv": "cbsim.observers.csv_observer:CsvObserver",
    },
)

__all__ = ["OBSERVERS", "Needs", "ObservedRun", "Observer", "StepView"]
