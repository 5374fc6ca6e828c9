"""Explain a run: what each step's batch was, what each request waited for, and where its time went."""

from cbsim.studies.explain.batch_step import Gantt
from cbsim.studies.explain.request_diagnosis import RequestDiagnosis, diagnose_request
from cbsim.studies.explain.run_diagnosis import RunDiagnosis, diagnose_run
from cbsim.studies.explain.source import Source, Window

__all__ = [
    "Gantt",
    "RequestDiagnosis",
    "RunDiagnosis",
    "Source",
    "Window",
    "diagnose_request",
    "diagnose_run",
]
