"""The conformance kit: laws that every scheduler keeps, checked over generated workloads.

    from cbsim.testing import check_scheduler
    check_scheduler(MyScheduler)

Needs neither pytest nor hypothesis. A broken law raises `ConformanceError` with the case that broke it.
"""

from cbsim.testing.case import Case, draw_case, starvation_case
from cbsim.testing.conformance import (
    ConformanceError,
    check_case,
    check_scheduler,
    differences,
    without_batches,
)
from cbsim.testing.laws import HISTORY_LAWS, LOG_LAWS, Violation
from cbsim.testing.observation import (
    BrokenOff,
    Call,
    Commit,
    History,
    Observation,
    Standing,
    observe,
    run_case,
)

__all__ = [
    "HISTORY_LAWS",
    "LOG_LAWS",
    "BrokenOff",
    "Call",
    "Case",
    "Commit",
    "ConformanceError",
    "History",
    "Observation",
    "Standing",
    "Violation",
    "check_case",
    "check_scheduler",
    "differences",
    "draw_case",
    "observe",
    "run_case",
    "starvation_case",
    "without_batches",
]
