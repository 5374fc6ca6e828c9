"""The conformance kit: laws that every scheduler keeps, checked over generated workloads.

    from cbsim.testing import check_scheduler
    check_scheduler(MyScheduler)

Needs neither pytest nor hypothesis. A broken law raises `ConformanceError` with the case that broke it.
"""

from cbsim.testing.case import Case, draw_case, starvation_case
from cbsim.testing.conformance import ConformanceError, check_case, check_scheduler
from cbsim.testing.identity import differences
from cbsim.testing.laws import LAWS, Violation
from cbsim.testing.observation import Call, Commit, Observation, Standing, observe

__all__ = [
    "LAWS",
    "Call",
    "Case",
    "Commit",
    "ConformanceError",
    "Observation",
    "Standing",
    "Violation",
    "check_case",
    "check_scheduler",
    "differences",
    "draw_case",
    "observe",
    "starvation_case",
]
